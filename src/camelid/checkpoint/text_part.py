"""The language model of a checkpoint that reads images too: its config, and its tensors under its own names."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError
from camelid.checkpoint.base import Checkpoint, TensorInfo
from camelid.model.config import warn_of_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.codecs.packed import PackedTensor
    from camelid.tokenizer import Tokenizer


@dataclass(frozen=True)
class Layout:
    """Where the parts of such a checkpoint lie."""

    text: str
    """What the names of the language model's tensors begin with."""
    images: tuple[str, ...]
    """What those of the parts for images begin with; they are left out."""
    settings: frozenset[str]
    """Keys of the outer config that are of images."""


LAYOUTS: Final[Mapping[str, Layout]] = {
    "llama4": Layout(
        text="language_model.",
        images=("vision_model.", "multi_modal_projector."),
        settings=frozenset({"vision_config", "boi_token_index", "eoi_token_index", "image_token_index"}),
    )
}
"""`model_type` of the outer config → the layout; the inner `text_config` names the architecture."""

SHARED = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
"""Keys that belong to the text where only the outer config states them."""

UNUSED = {"text_config", "model_type", "architectures", "transformers_version", "_name_or_path", "use_cache"}


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or the language model in it, with a warning that images are not read.

    Raises:
        FormatError: the outer config has no `text_config`, or a tensor belongs to no known part.
    """
    model_type = checkpoint.config.get("model_type")
    layout = LAYOUTS.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        return checkpoint
    try:
        return TextPart(checkpoint, layout)
    except BaseException:
        checkpoint.close()
        raise


class TextPart(Checkpoint):
    """The language model of a checkpoint.

    Args:
        whole: the checkpoint; closed along with this one.
        layout: where its parts lie.
    """

    def __init__(self, whole: Checkpoint, layout: Layout) -> None:
        self.path = whole.path
        self.format = whole.format
        self._whole = whole
        self._layout = layout
        text = whole.config.get("text_config")
        if not isinstance(text, dict):
            raise FormatError("the config has no table 'text_config'", where=whole.path)
        warn_of_unknown(whole.config, {*UNUSED, *SHARED, *layout.settings})
        outer = {name: whole.config[name] for name in SHARED if whole.config.get(name) is not None}
        self._config: Mapping[str, Any] = {**outer, **text}
        left_out = sum(name.startswith(layout.images) for name in whole.tensors)
        if left_out:
            warnings.warn(
                f"{whole.path}: the {left_out} tensors that read images are left out; the model reads text only",
                UserWarning,
                stacklevel=4,
            )

    @property
    def config(self) -> Mapping[str, Any]:
        """The `text_config`, with what only the outer config states."""
        return self._config

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The language model's tensors, by the names that they have in a checkpoint of it alone."""
        prefix, infos = self._layout.text, {}
        for name, info in self._whole.tensors.items():
            if name.startswith(prefix):
                infos[name.removeprefix(prefix)] = replace(info, name=name.removeprefix(prefix))
            elif not name.startswith(self._layout.images):
                raise FormatError(f"tensor '{name}' is neither of the text nor of the images", where=self.path)
        return infos

    def read(self, name: str) -> Tensor | PackedTensor:
        """One tensor of the language model."""
        return self._whole.read(self._layout.text + name)

    @property
    def files(self) -> Sequence[Path]:
        """The files of the whole."""
        return self._whole.files

    def release(self, name: str) -> None:
        """Give back what `read(name)` took of memory."""
        self._whole.release(self._layout.text + name)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer of the whole."""
        return self._whole.load_tokenizer()

    @property
    def chat_template(self) -> str | None:
        """The template of the whole."""
        return self._whole.chat_template

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Of the whole."""
        return self._whole.generation_config

    def close(self) -> None:
        """Close the whole."""
        self._whole.close()
