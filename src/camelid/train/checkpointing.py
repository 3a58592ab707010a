"""A run's checkpoints: folders that are whole or absent, verified before they are believed.

    checkpoints/step-00000500/
        model/                 the Hugging Face folder that every tool opens
        optimizer.safetensors  the optimizer's tensors
        state.json             step, generators, and the identity of the run
        manifest.json          SHA-256 and size of every file above

A folder gets its name only once everything in it is on disk.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from camelid.base.errors import CamelidError, FormatError, RecipeError
from camelid.base.files import atomic_folder, check_free_space, existing_file, sha256
from camelid.checkpoint import open_checkpoint, save_huggingface
from camelid.checkpoint.safetensors import SafetensorsFile, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from camelid.model.base import LanguageModel
    from camelid.tokenizer import Tokenizer
    from camelid.train.optimizer import Optimizer

MODEL = "model"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
FORMAT = 1
NUM_KEPT = 2
"""Two, so that one that turns out damaged leaves another."""

_NAME = re.compile(r"step-(\d{8})")
_ABANDONED = re.compile(r"\.step-\d{8}\..*\.(partial|old)")

_log = logging.getLogger("camelid")


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was not believed, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Companions:
    """What is written beside the weights, so that the model folder serves as it is."""

    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    """The Jinja text; a model that has one answers conversations."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the origin."""


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created with the first.
        identity: what makes the run what it is, in JSON's types; a checkpoint of another one is refused.
        milestone_every: checkpoints at multiples of this step are kept for good; 0: only the last two are.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], milestone_every: int = 0) -> None:
        self.folder = folder
        self._identity = _flat(json.loads(json.dumps(identity)))
        self._milestone_every = milestone_every

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, once it does."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, model: LanguageModel, optimizer: Optimizer, companions: Companions) -> Path:
        """Write the checkpoint of a step; older ones go only after it stands.

        Raises:
            ResourceError: the disk is full; what was there is as it was.
        """
        path = self.path(step)
        state = optimizer.state()
        num_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *state.values()))
        check_free_space(path, num_bytes + (64 << 20))
        with atomic_folder(path) as new:
            save_huggingface(
                model,
                new / MODEL,
                tokenizer=companions.tokenizer,
                chat_template=companions.chat_template,
                generation_config=companions.generation_config,
                lineage={**companions.lineage, "step": step},
            )
            with (new / OPTIMIZER).open("wb") as file:
                entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
                write_safetensors(file, entries, state.__getitem__)
            _write_json(new / STATE, {"step": step, "generators": _generators(), "identity": self._identity})
            files = sorted(file for file in new.rglob("*") if file.is_file())
            records = {
                file.relative_to(new).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
                for file in files
            }
            _write_json(new / MANIFEST, {"format": FORMAT, "step": step, "files": records})
        self._delete_old(step)
        return path

    def resume(self, model: LanguageModel, optimizer: Optimizer) -> int:
        """Take up the newest checkpoint that verifies; its step, or 0 if there is none.

        Raises:
            RecipeError: it belongs to a run with other data, another model or other settings.
            FormatError: there are checkpoints, and none of them verifies.
        """
        self._remove_abandoned()
        path, skipped = self.newest()
        for one in skipped:
            _log.warning("skipping the checkpoint %s: %s", one.path, one.reason)
        if path is None and skipped:
            raise FormatError(
                "no checkpoint of this run can be used: " + "; ".join(f"{s.path.name}: {s.reason}" for s in skipped),
                where=self.folder,
                hint="restore one of them, or start again in another run folder",
            )
        if path is None:
            return 0
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        self._check_identity(path, state["identity"])
        _load_weights(path / MODEL, model)
        with closing(SafetensorsFile(path / OPTIMIZER)) as file:
            optimizer.load_state({name: file.read(name) for name in file.entries})
        _restore_generators(state["generators"])
        return int(state["step"])

    def newest(self) -> tuple[Path | None, list[Skipped]]:
        """The newest checkpoint whose files are those of its manifest, and the newer ones that are not."""
        skipped = []
        for _, path in sorted(self._steps().items(), reverse=True):
            try:
                verify(path)
            except CamelidError as error:
                skipped.append(Skipped(path, error.what))
            else:
                return path, skipped
        return None, skipped

    def _steps(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        matches = {path: _NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()}
        return {int(match[1]): path for path, match in matches.items() if match}

    def _delete_old(self, step: int) -> None:
        """Later checkpoints than the one just written are ones that did not verify when the run resumed."""
        steps = self._steps()
        kept = set(sorted(n for n in steps if n <= step)[-NUM_KEPT:])
        if self._milestone_every:
            kept |= {n for n in steps if n <= step and n % self._milestone_every == 0}
        for number in steps.keys() - kept:
            shutil.rmtree(steps[number])

    def _remove_abandoned(self) -> None:
        """What a kill in the middle of a save left behind."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _ABANDONED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _check_identity(self, path: Path, identity: Mapping[str, Any]) -> None:
        names = sorted(self._identity.keys() | identity.keys())
        differing = [name for name in names if self._identity.get(name) != identity.get(name)]
        if differing:
            shown = "; ".join(
                f"{name} was {identity.get(name)!r} and is {self._identity.get(name)!r}" for name in differing[:3]
            )
            raise RecipeError(
                f"the checkpoint belongs to another run: {shown}",
                where=path,
                hint="take up the run with the recipe it was started with, or start in another run folder; "
                "to train on from its weights, name its model folder in the recipe",
            )


def verify(path: Path) -> None:
    """Hold every file of a checkpoint against its manifest.

    Raises:
        NotFoundError: the manifest, or a file that it names, is missing.
        FormatError: a file is not the one that was written.
    """
    manifest = existing_file(path / MANIFEST)
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        version, files = document["format"], {str(name): dict(record) for name, record in document["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"not a manifest: {error!r}", where=manifest) from error
    if version != FORMAT:
        raise FormatError(f"unknown checkpoint format {version!r}", where=manifest)
    if missing := {STATE, OPTIMIZER} - files.keys():
        raise FormatError(f"the manifest does not name {', '.join(sorted(missing))}", where=manifest)
    for name, record in files.items():
        file = path / name
        if not file.is_file():
            raise FormatError(f"'{name}' is missing", where=path)
        if file.stat().st_size != record.get("bytes") or sha256(file) != record.get("sha256"):
            raise FormatError(f"'{name}' is damaged", where=path)


def _load_weights(folder: Path, model: LanguageModel) -> None:
    """Copied into the model's own memory: a view into the file may lie at another alignment, and sum differently."""
    with closing(open_checkpoint(folder)) as checkpoint, torch.no_grad():
        for name, parameter in model.named_parameters():
            value = checkpoint.read(name)
            assert isinstance(value, torch.Tensor), f"{name} is packed"
            parameter.copy_(value)


def _generators() -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def _restore_generators(states: Mapping[str, str]) -> None:
    for name, text in states.items():
        state: Tensor = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state, name)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
    return flat


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
