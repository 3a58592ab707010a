"""A loaded model as tasks see it: replies to prompts, and the likelihood of texts.

Shape suffixes: T tokens of all windows of a batch end to end, S scored tokens, C tokens of one chunk, E hidden size,
V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from camelid.base.errors import EngineError
from camelid.model.attention import PackedContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from camelid.evaluate.windows import Window
    from camelid.llm import LLM, Prompt
    from camelid.model.base import LanguageModel
    from camelid.tokenizer import Tokenizer

BATCH_TOKENS = {"cpu": 2048}
"""Tokens of one forward pass, by kind of device."""
ACCELERATOR_BATCH_TOKENS = 16_384
LOGITS_BYTES = {"cpu": 32 << 20}
"""Of fp32 logits that live at once; the logits of a whole batch with 128k entries would take gigabytes."""
ACCELERATOR_LOGITS_BYTES = 512 << 20
MIN_CHUNK_TOKENS = 64
"""Whose logits are computed together whatever they take: below it the products themselves slow down."""
PROMPTS_AT_ONCE = 64
"""Given to the engine together, which batches them as its memory allows."""


class ModelSubject:
    """A model under evaluation.

    Args:
        llm: the model.
        sampling: fields of `SamplingParams` that hold for every reply; greedy if empty.
    """

    def __init__(self, llm: LLM, sampling: Mapping[str, Any] | None = None) -> None:
        self.llm = llm
        self._sampling = dict(sampling or {})

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.llm.tokenizer

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.llm.model.config.max_position_embeddings

    @property
    def has_chat_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self.llm.chat_template is not None

    def replies(self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The reply to each prompt, in order.

        Raises:
            ContextLengthError: a prompt leaves no room for a reply.
            ChatFormatError: a conversation is put to a model without a chat format.
        """
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            batch = prompts[first : first + PROMPTS_AT_ONCE]
            for reply in self.llm.generate(batch, max_tokens=max_tokens, stop=tuple(stop), **self._sampling):
                yield reply.text

    def nats(self, windows: Iterable[Window]) -> Iterator[NDArray[np.float64]]:
        """−ln p of each scored token of each window, in order; float64 [S] each.

        Raises:
            EngineError: the model's scores are not numbers.
        """
        budget = BATCH_TOKENS.get(self._device.type, ACCELERATOR_BATCH_TOKENS)
        for batch in _batches(windows, budget):
            for nats_S in window_nats(self.llm.model, batch):
                if not np.isfinite(nats_S).all():
                    raise EngineError(
                        "the model's scores are not numbers",
                        hint="the weights are damaged, or their dtype is too narrow for the values",
                    )
                yield nats_S

    @property
    def _device(self) -> torch.device:
        return next(self.llm.model.parameters()).device


@torch.inference_mode()
def window_nats(model: LanguageModel, windows: Sequence[Window]) -> list[NDArray[np.float64]]:
    """−ln p of each window's scored tokens, all windows in one forward pass without padding."""
    if model.training:
        model.eval()
    device = next(model.parameters()).device
    lengths = [len(window.ids_N) - 1 for window in windows]
    context = PackedContext(lengths, device)
    ids_T = _tensor([window.ids_N[:-1] for window in windows], device)
    hidden_TE: torch.Tensor = model(ids_T, context.positions(device), context)
    ends = np.cumsum(lengths)
    rows = [np.arange(end - window.num_scored, end) for window, end in zip(windows, ends, strict=True)]
    targets_S = _tensor([window.ids_N[len(window.ids_N) - window.num_scored :] for window in windows], device)
    nats_S = _nats(model, hidden_TE[_tensor(rows, device)], targets_S).double().cpu().numpy()
    scored_ends = np.cumsum([window.num_scored for window in windows])
    return [nats_S[end - window.num_scored : end] for window, end in zip(windows, scored_ends, strict=True)]


def _nats(model: LanguageModel, hidden_SE: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    num_bytes = LOGITS_BYTES.get(hidden_SE.device.type, ACCELERATOR_LOGITS_BYTES)
    chunk = max(MIN_CHUNK_TOKENS, num_bytes // (4 * model.config.vocab_size))
    return torch.cat(
        [
            F.cross_entropy(model.logits(hidden_CE), targets_C, reduction="none")
            for hidden_CE, targets_C in zip(torch.split(hidden_SE, chunk), torch.split(targets_S, chunk), strict=True)
        ]
    )


def _tensor(parts: Sequence[NDArray[np.int64]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


def _batches(windows: Iterable[Window], budget: int) -> Iterator[list[Window]]:
    """Consecutive windows of at most `budget` tokens together, or one longer window."""
    batch: list[Window] = []
    num_tokens = 0
    for window in windows:
        if batch and num_tokens + len(window.ids_N) - 1 > budget:
            yield batch
            batch, num_tokens = [], 0
        batch.append(window)
        num_tokens += len(window.ids_N) - 1
    if batch:
        yield batch
