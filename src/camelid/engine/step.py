"""A step of the engine: schedule, guess, run, sample, and hand each request what it got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import EngineError
from camelid.engine.protocol import FinishReason, StepOutput, TokenLogprob
from camelid.engine.sampling import NONE_LEFT, sample
from camelid.engine.sampling.logprobs import token_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.engine.model_runner import ModelRunner
    from camelid.engine.requests import Requests
    from camelid.engine.scheduler import Scheduler
    from camelid.engine.sequence import Chunk, Sequence
    from camelid.engine.speculate import Proposer


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step did, for logs and metrics."""

    num_sequences: int
    """Sequences in the forward pass."""
    num_tokens: int
    """Tokens in the forward pass, of all sequences together."""
    num_waiting: int
    """Sequences that hold no part of the cache yet."""
    num_free_blocks: int
    """Blocks that no sequence holds, those that are kept for reuse included."""
    num_preemptions: int
    """Since the engine was made, as is the next."""
    num_reused_tokens: int
    """Tokens that sequences found in the cache when they began to run."""
    num_drafts: int = 0
    """Guesses that were checked, and how many of them were right."""
    num_accepted: int = 0


class Stepper:
    """Runs steps, and keeps count of what they found.

    Args:
        scheduler: says which tokens run.
        runner: runs them.
        proposer: guesses tokens ahead; None: nobody does.
        requests: are handed what they got.
    """

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, proposer: Proposer | None, requests: Requests
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._proposer = proposer
        self._requests = requests
        self._num_reused_tokens = self._num_drafts = self._num_accepted = 0

    @torch.inference_mode()
    def run(self) -> StepStats | None:
        """One step; None if there was nothing to do."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return None
        if self._proposer is not None and any(chunk.num_drafts for chunk in chunks):
            self._proposer.propose(chunks)
        logits_BV = self._runner.run(chunks)
        sampled: list[tuple[Chunk, int]] = []
        num_rows = num_tokens = num_checked = 0
        for chunk in chunks:
            num_drafts = len(chunk.drafts)
            num_tokens += chunk.length + num_drafts
            if chunk.is_last:
                sampled.append((chunk, num_rows))
                num_rows += 1 + num_drafts
        while sampled or num_checked == 0:
            sampled = self._sample(chunks, sampled, logits_BV, num_checked)
            num_checked += 1
        return StepStats(
            num_sequences=len(chunks),
            num_tokens=num_tokens,
            num_waiting=len(self._scheduler.waiting),
            num_free_blocks=self._scheduler.blocks.num_free,
            num_preemptions=self._scheduler.num_preemptions,
            num_reused_tokens=self._num_reused_tokens,
            num_drafts=self._num_drafts,
            num_accepted=self._num_accepted,
        )

    def _sample(
        self, chunks: list[Chunk], sampled: list[tuple[Chunk, int]], logits_BV: Tensor, num_checked: int
    ) -> list[tuple[Chunk, int]]:
        """One more token of each sequence; those whose guess of it was right, and so have scores for another.

        Args:
            chunks: all of the step.
            sampled: those that have scores for their next token, each with its first row.
            logits_BV: the step's scores.
            num_checked: guesses of each that have turned out right.
        """
        sequences = [chunk.sequence for chunk, _ in sampled]
        rows = [row + num_checked for _, row in sampled]
        if len(rows) < logits_BV.shape[0]:
            logits_BV = logits_BV[rows]
        tokens = sample(logits_BV, sequences) if rows else []
        logprobs = _asked_logprobs(logits_BV, sequences, tokens)
        # Nothing is noted before this line: a step that failed or was interrupted runs again as it was.
        if num_checked == 0:
            self._note_computed(chunks)
        right: list[tuple[Chunk, int]] = []
        for number, ((chunk, row), token) in enumerate(zip(sampled, tokens, strict=True)):
            sequence = chunk.sequence
            if num_checked:
                self._num_accepted += 1
                self._scheduler.note_computed(sequence, 1)
            self._advance(sequence, token, logprobs.get(number, ()))
            is_right = chunk.drafts[num_checked : num_checked + 1] == [token]
            if is_right and self._requests.get(sequence.request_id) is sequence:  # which may have ended
                right.append((chunk, row))
        return right

    def _note_computed(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if chunk.start == chunk.sequence.num_reused:
                self._num_reused_tokens += chunk.sequence.num_reused
            self._num_drafts += len(chunk.drafts)
            self._scheduler.note_computed(chunk.sequence, chunk.length)

    def _advance(self, sequence: Sequence, token: int | None, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """Add a sampled token to its sequence, and end it if that was the last."""
        request_id = sequence.request_id
        if token is None:
            self._scheduler.blocks.forget(sequence.block_table)
            self._requests.fail(
                sequence,
                "the model's scores are not numbers",
                "the weights are damaged, or their dtype is too narrow for the values",
            )
        elif token == NONE_LEFT:
            problem = sequence.grammar.problem if sequence.grammar else "every token is banned"
            self._requests.fail(sequence, f"no token can come next: {problem}", "loosen the grammar or what is banned")
        elif token in sequence.stop_ids:
            self._requests.finish(sequence, StepOutput(request_id, (), "stop", stop_token=token))
        else:
            try:
                is_whole = sequence.grammar is not None and sequence.grammar.accept(token)
            except EngineError as error:
                self._requests.fail(sequence, error.what, "simplify the grammar")
                return
            prompt_logprobs = () if sequence.num_generated else tuple(sequence.prompt_logprobs)
            sequence.token_ids.append(token)
            reason: FinishReason | None = None
            if is_whole:
                reason = "stop"
            elif len(sequence) >= sequence.max_length:
                reason = "length"
            output = StepOutput(request_id, (token,), reason, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
            if reason:
                self._requests.finish(sequence, output)
            else:
                self._requests.deliver(sequence, output)


def _asked_logprobs(
    logits_BV: Tensor, sequences: list[Sequence], tokens: list[int | None]
) -> dict[int, tuple[TokenLogprob, ...]]:
    """Row → its token's log-probability, for those that ask and have a token."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs]
    found: dict[int, tuple[TokenLogprob, ...]] = {}
    for row in rows:
        token = tokens[row]
        if token is not None and token != NONE_LEFT:
            num_top = sequences[row].params.top_logprobs
            found[row] = tuple(token_logprobs(logits_BV[row : row + 1], [token], num_top))
    return found
