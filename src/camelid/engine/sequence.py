"""One request on its way through the engine."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from camelid.engine.block_manager import next_key

if TYPE_CHECKING:
    from camelid.engine.grammar import Grammar
    from camelid.engine.params import SamplingParams
    from camelid.engine.protocol import StepOutput, TokenLogprob
    from camelid.engine.vocabulary import BannedText
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
    root: bytes = b""
    """The key before the first block (`block_manager.root_key`)."""
    priority: int = 0
    """Greater goes first."""
    owner: str = ""
    """On whose behalf; owners take turns."""
    turn: int = 0
    """Its place among its owner's requests and everybody's turns. Set by the scheduler, as is the next."""
    rank: tuple[int, int] = (0, 0)
    """The scheduler's order: the least runs first."""
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, in the order of their tokens."""
    image_positions: tuple[int, ...] = ()
    """Of their tokens."""
    memory: ImageMemory | None = None
    """What the model read of the images; None until the sequence runs, and again once it is preempted."""
    banned_texts: tuple[BannedText, ...] = ()
    dry_breakers: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    """What the reply has to follow, and how far it has come."""
    inbox: list[StepOutput] | None = None
    """Its outputs, if it has a reader of its own; the others' are returned by `Engine.step`."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_prompt: int = field(init=False)
    takes_best: bool = field(init=False)
    """Whether the best token of the model's own scores comes next, without more ado."""
    num_computed: int = 0
    """Tokens whose keys and values lie in the cache."""
    num_reused: int = 0
    """Of these, tokens that were found there when the sequence began to run."""
    block_table: list[int] = field(default_factory=list)
    """The cache blocks that hold the sequence, in order."""
    num_remembered: int = 0
    """Blocks at the beginning of the table that the block manager knows by their keys."""
    may_reuse: bool = True
    """Whether it may start from blocks that the cache remembers."""
    known_keys: list[bytes] = field(default_factory=list)
    """The keys of its full blocks, as far as they have been asked for."""

    num_draft_computed: int = 0
    """Tokens whose keys and values lie in a draft model's cache."""
    ngram_ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """A few tokens in a row → where they last ended; kept by `speculate.continuation`."""
    num_indexed: int = 0
    _mus: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)
        self.takes_best = self.params.temperature == 0 and not self.adjusts_logits
        self._mus = [2 * self.params.mirostat_tau]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def images_digest(self) -> bytes:
        """What the cache depends on beside tokens, the first ones included: blocks may be shared where it is equal."""
        return b"".join(image.digest for image in self.images)

    @property
    def adjusts_logits(self) -> bool:
        """Whether anything is added to its logits or ruled out."""
        return self.grammar is not None or self.params.adjusts_logits

    @property
    def mirostat_mu(self) -> float:
        """Mirostat's bound for the next token."""
        return self._mus[self.num_generated]

    def set_next_mu(self, mu: float) -> None:
        """Note mirostat's bound for the token after next. A step that is repeated notes it again."""
        del self._mus[self.num_generated + 1 :]
        self._mus.append(mu)

    @property
    def num_generated(self) -> int:
        """Tokens of the reply so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that must run before the next one can be sampled: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed

    def shadow(self) -> Sequence:
        """A copy to guess with: nothing done to it is seen here. It has no grammar."""
        shadow = copy(self)
        shadow.token_ids = self.token_ids.copy()
        shadow.grammar = None
        shadow._mus = self._mus.copy()
        return shadow

    def keys(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The keys of the first blocks, all of which are full."""
        for index in range(len(self.known_keys), num_blocks):
            tokens = self.token_ids[index * block_size : (index + 1) * block_size]
            self.known_keys.append(next_key(self.known_keys[-1] if index else self.root, tokens))
        return self.known_keys[:num_blocks]


@dataclass(slots=True)
class Chunk:
    """The next tokens of one sequence that run in a step."""

    sequence: Sequence
    start: int
    """Position of the first token, which is also the number of tokens already cached."""
    length: int
    is_last: bool
    """Whether the sequence's last token is among them, so that the next one can be sampled."""
    num_drafts: int = 0
    """Guesses that there is room for behind them."""
    drafts: list[int] = field(default_factory=list)
    """Guesses of the tokens that come next, to be checked in the same step."""

    @property
    def token_ids(self) -> list[int]:
        """The tokens to run."""
        return self.sequence.token_ids[self.start : self.start + self.length] + self.drafts
