"""One request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camelid.engine.params import SamplingParams
    from camelid.model.image_memory import ImageMemory, PromptImage


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, what has been generated after it, and how much of both the cache holds."""

    request_id: int
    token_ids: list[int]
    """The prompt, then the reply."""
    params: SamplingParams
    seed: int
    """What the samples of this request are drawn from; `params.seed`, or a fresh one."""
    stop_ids: frozenset[int]
    """Tokens that end the reply."""
    max_length: int
    """Tokens of prompt and reply at which the reply ends."""
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, in the order of their tokens."""
    image_positions: tuple[int, ...] = ()
    """Of their tokens."""
    memory: ImageMemory | None = None
    """What the model read of the images; None until the sequence runs, and again once it is preempted."""
    num_prompt: int = field(init=False)
    num_computed: int = 0
    """Tokens whose keys and values lie in the cache."""
    block_table: list[int] = field(default_factory=list)
    """The cache blocks that hold the sequence, in order."""

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def images_digest(self) -> bytes:
        """What the cache depends on beside tokens, the first ones included: blocks may be shared where it is equal."""
        return b"".join(image.digest for image in self.images)

    @property
    def num_generated(self) -> int:
        """Tokens of the reply so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that must run before the next one can be sampled: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence that run in a step."""

    sequence: Sequence
    start: int
    """Position of the first token, which is also the number of tokens already cached."""
    length: int

    @property
    def token_ids(self) -> list[int]:
        """The tokens to run."""
        return self.sequence.token_ids[self.start : self.start + self.length]

    @property
    def is_last(self) -> bool:
        """Whether the sequence's last token is among them, so that the next one can be sampled."""
        return self.start + self.length == len(self.sequence)
