"""What every language model here is: a config and a token-flat forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn

from camelid.model.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from camelid.model.attention import AttentionContext
    from camelid.model.image_memory import ImageMemory, PromptImage
    from camelid.model.image_reader import ImageReader
    from camelid.model.linear import Matrix

__all__ = ["LanguageModel", "ModelConfig"]


class LanguageModel(nn.Module, ABC):
    """A decoder over tokens that lie end to end.

        hidden_WE = model(ids_T, positions_T, context)
        logits_WV = model.logits(hidden_WE)

    W are those of the T tokens that the context wants to hear of, all of them unless it says otherwise. The two steps
    are apart so that a trainer computes logits in chunks.
    Parameter names are those of the architecture's Hugging Face checkpoint.
    """

    config_class: ClassVar[type[ModelConfig]]
    """Reads the `config.json` of this architecture: `config_class.from_hf(settings)`."""

    image_reader_class: ClassVar[type[ImageReader] | None] = None
    """Prepares images for `image_memory`; None: the model reads text only."""

    steps_are_fixed: ClassVar[bool] = True
    """Whether the operations of a forward pass follow from its tensors' shapes, so that they can be recorded."""

    config: ModelConfig

    @abstractmethod
    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """Final hidden states [W, E], after the last norm: `context.wanted` takes them from those of all tokens.

        Args:
            ids_T: int64 token ids of all sequences, end to end.
            positions_T: int64 position of each token in its own sequence.
            context: knows the sequences' boundaries, the cache, and whose states are wanted.
        """

    @property
    @abstractmethod
    def output_matrix(self) -> Matrix:
        """The matrix that scores the vocabulary, tied or not; a trainer multiplies with it in chunks."""

    def logits(self, hidden_WE: Tensor) -> Tensor:
        """Scores over the vocabulary, fp32 [W, V]."""
        return self.output_matrix.multiply(hidden_WE).float()

    def image_memory(self, images: Sequence[PromptImage], positions: Sequence[int]) -> ImageMemory:
        """What the layers that attend to images read of one sequence's: for `AttentionContext.images`.

        Args:
            images: as `image_reader_class` prepares them.
            positions: of each image's token in the sequence, ascending.
        """
        raise NotImplementedError(f"{type(self).__name__} reads text only")

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """The model with uninitialised parameters on the current default device (use `torch.device("meta")`)."""

    @abstractmethod
    def initialize(self, seed: int) -> None:
        """Fill every parameter for training from scratch, reproducibly."""
