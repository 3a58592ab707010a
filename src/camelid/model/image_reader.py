"""What prepares images for a model: the contents of a `preprocessor_config.json`, and what follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from camelid.model.image_memory import PromptImage


class ImageReader(ABC):
    """Prepares images for one model."""

    @classmethod
    @abstractmethod
    def from_hf(cls, settings: Mapping[str, Any], config: Any) -> Self:
        """Read the contents of a `preprocessor_config.json`.

        Args:
            settings: them; empty if there is none.
            config: the model's.

        Raises:
            ConfigError: settings that cannot be honoured, or that do not fit the model.
        """

    @abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The contents of a `preprocessor_config.json` that transformers and vLLM read."""

    @abstractmethod
    def read(self, image: Image) -> PromptImage:
        """An opened image (see `camelid.model.image_files`) as the model takes it."""
