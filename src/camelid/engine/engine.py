"""The engine: continuous batching over a paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ContextLengthError, EngineError, did_you_mean
from camelid.engine.admission import Admission
from camelid.engine.block_manager import BlockManager
from camelid.engine.cache_file import restore_cache, save_cache
from camelid.engine.cache_size import allocate_cache, cache_capacity, checked_context, images_in_memory
from camelid.engine.kv_cache import CACHES, PagedContext, PagedKVCache
from camelid.engine.model_runner import ModelRunner
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion, FinishReason, Generator, StepOutput, TokenLogprob
from camelid.engine.sampling import NONE_LEFT, sample
from camelid.engine.sampling.logprobs import token_logprobs
from camelid.engine.scheduler import Scheduler
from camelid.engine.speculate import DraftModel, LookUp
from camelid.model.linear import Matrix
from camelid.model.lora import Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from camelid.engine.sequence import Chunk, Sequence
    from camelid.engine.speculate import Proposer
    from camelid.engine.vocabulary import Vocabulary
    from camelid.model.base import LanguageModel
    from camelid.model.image_memory import PromptImage
    from camelid.model.lora import LoraAdapter


DEFAULT_DRAFTS = 4
"""Guesses of a draft model, if their number is not given."""


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


class Engine(Generator):
    """Continues prompts of token ids, many at a time.

        engine = Engine(model, stop_ids=(2,))
        engine.generate([[1, 5, 9], [1, 7]], SamplingParams(max_tokens=20))

    or, request by request:

        request = engine.add([1, 5, 9], SamplingParams(temperature=0.8, seed=1))
        while engine.has_unfinished:
            for output in engine.step():
                ...

    A stop id ends a reply and is not part of it. `SamplingParams.stop` is text and the caller's business. One thread at
    a time may use an engine; `generate` and `stream` may be mixed with `step`, which returns the outputs of `add` only.

    The cache keeps what finished requests have left as long as there is room: a prompt that begins like an earlier one
    of the same `cache_salt` starts where they part. Nothing of that shows in the replies.

    Args:
        model: any `LanguageModel`, on its device and in its dtype. Steps run it in evaluation mode and leave it so.
        stop_ids: the model's own end tokens; `ignore_eos` goes past them.
        max_context: tokens of prompt and reply that a sequence may have. Default: the model's, or what the cache holds.
        cache_tokens: tokens that the cache holds, all sequences together. Default: `max_sequences` full contexts within
            a quarter of the free memory. A CPU commits the memory only as it is used.
        cache_bytes: the same in bytes, in place of `cache_tokens`.
        cache_format: "exact", or "q8" for 8 bits: about a quarter of fp32's memory, and replies that differ a little.
        block_size: tokens per cache block.
        max_batch_tokens: tokens per forward pass; longer prompts run in chunks. More is quicker on a big device, fewer
            keeps running replies fluent while a long prompt arrives. Default: 512 on a CPU, else 4096.
        max_sequences: sequences that run at one time; more wait.
        max_images: images of running sequences together, whose keys and values are held. Default: as many as fit into
            an eighth of the free memory, but at least one.
        batch_invariant: compute each reply to the same bits whatever runs beside it, at a cost (docs/decisions/0010).
        num_drafts: tokens that are guessed ahead per step and checked together; 0: none. Replies stay the same.
        draft_model: who guesses, a smaller model of the same vocabulary; None: what followed the same words before.
        vocabulary: makes what the engine knows of text, for grammars, banned strings and DRY's breakers.
        on_step: called after each step.

    Raises:
        ResourceError: the cache does not fit into memory, or `max_context` not into the cache.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        stop_ids: tuple[int, ...] = (),
        max_context: int | None = None,
        cache_tokens: int | None = None,
        cache_bytes: int | None = None,
        cache_format: str = "exact",
        block_size: int = 16,
        max_batch_tokens: int | None = None,
        max_sequences: int = 64,
        max_images: int | None = None,
        batch_invariant: bool = False,
        num_drafts: int = 0,
        draft_model: LanguageModel | None = None,
        vocabulary: Callable[[], Vocabulary] | None = None,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        sizes = {"block_size": block_size, "max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}
        if num_drafts < 0:
            raise EngineError(f"num_drafts must be 0 or more, not {num_drafts}", where="num_drafts")
        sizes |= {"max_context": max_context, "cache_tokens": cache_tokens, "max_images": max_images}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise EngineError(f"{name} must be at least 1, not {size}", where=name)
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.device, self.dtype = _device_and_dtype(model)
        self.max_batch_tokens = max_batch_tokens or (512 if self.device.type == "cpu" else 4096)
        self.on_step = on_step

        if cache_format not in CACHES:
            known = did_you_mean(cache_format, CACHES)
            raise EngineError(f"there is no cache format '{cache_format}'", where="cache_format", hint=known)
        cache_kind = CACHES[cache_format]
        capacity = cache_capacity(
            cache_kind.bytes_per_token(model.config, self.dtype),
            cache_tokens=cache_tokens,
            cache_bytes=cache_bytes,
            block_size=block_size,
            device=self.device,
        )
        positions = model.config.max_position_embeddings
        self.max_context = checked_context(max_context, positions, capacity)
        """Tokens of prompt and reply that a sequence may have."""

        num_blocks = min(capacity // block_size, -(-(max_context or positions) // block_size) * max_sequences)
        self._blocks = BlockManager(num_blocks, block_size)
        per_image = model.config.kv_elements_per_image * self.dtype.itemsize
        self.max_images = max_images or images_in_memory(per_image, self.device)
        """Images that a sequence may have."""
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=max_sequences,
            max_images=self.max_images,
            num_drafts=num_drafts or (DEFAULT_DRAFTS if draft_model is not None else 0),
        )
        self._proposer = self._new_proposer(draft_model)
        self._adapters = Adapters(model)
        if batch_invariant and model.config.image_token_id is not None:
            raise EngineError("what a model reads of images rounds with the batch", where="batch_invariant")
        if batch_invariant and any(isinstance(m, Matrix) and m.packed is not None for m in model.modules()):
            raise EngineError(
                "products with packed weights round with the batch",
                where="batch_invariant",
                hint="load the model with packed=False",
            )
        cache = self._allocate(num_blocks, cache_kind)
        self._runner = ModelRunner(model, cache, self._adapters, invariant=batch_invariant)
        self._num_reused_tokens = self._num_drafts = self._num_accepted = 0
        self._admission = Admission(
            model.config, self.max_context, self.stop_ids, vocabulary, self._adapters, self.max_images
        )
        self._sequences: dict[int, Sequence] = {}
        """The unfinished requests."""
        self._inboxes: dict[int, list[StepOutput]] = {}
        """Outputs for `generate` and `stream`, by request, until they take them."""
        self._undelivered: list[StepOutput] = []
        """Outputs for `step` to return."""

    def add(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        images: Iterable[PromptImage] = (),
        request_id: int | None = None,
    ) -> int:
        """Queue a prompt and return its request id, a fresh one unless given.

        Args:
            prompt_ids: token ids.
            params: how to go on; greedily by default.
            images: those that the prompt's image tokens stand for, in order, as the model's image reader prepares them.
            request_id: a number that no unfinished request has.

        Raises:
            ContextLengthError: the prompt leaves no room for a reply.
            EngineError: an empty prompt, an id outside the vocabulary, more or fewer images than image tokens, or a
                request id in use.
            SamplingError: `params.n` is not 1; see `SamplingParams.samples`.
        """
        sequence = self._admission.sequence(prompt_ids, params or SamplingParams(), request_id, images=images)
        self._enqueue(sequence)
        return sequence.request_id

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything left to do or to return."""
        return bool(self._sequences or self._undelivered)

    def step(self) -> list[StepOutput]:
        """One forward pass; what each request of `add` got since the last call, and the ends of those cancelled.

        A request whose logits are not numbers ends with finish reason "error"; the others go on.
        """
        self._run_step()
        outputs, self._undelivered = self._undelivered, []
        return outputs

    def cancel(self, request_id: int) -> None:
        """End a request; the next step returns its last output. One that has ended already is left alone."""
        if sequence := self._sequences.get(request_id):
            self._finish(sequence, StepOutput(request_id, (), "cancelled"))

    def generate(
        self,
        prompts: Iterable[Iterable[int]],
        params: SamplingParams | Iterable[SamplingParams],
        *,
        images: Iterable[Iterable[PromptImage]] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order, or `n` of each; one `params` for all prompts, or one each;
        the images of each, if any has some.

        Raises:
            ContextLengthError: as for `add`; nothing has run then.
            EngineError: as for `add`, or the model's scores for one of the prompts are not numbers; all are given up
                then.
        """
        prompts = list(prompts)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many sampling settings, or one for all, not {len(each)}")
        of_each = [()] * len(prompts) if images is None else [tuple(own) for own in images]
        if len(of_each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many lists of images, not {len(of_each)}")
        sequences = [
            self._admission.sequence(prompt, sample_params, images=own)
            for prompt, p, own in zip(prompts, each, of_each, strict=True)
            for sample_params in p.samples()
        ]
        try:
            for sequence in sequences:
                self._enqueue(sequence, inbox=[])
            return [self._complete(sequence) for sequence in sequences]
        finally:
            for sequence in sequences:
                self._abandon(sequence)

    def stream(self, prompt_ids: Iterable[int], params: SamplingParams | None = None) -> Iterator[StepOutput]:
        """The reply as it comes, one output per step; the request is queued by the first `next`.

        Closing or dropping the iterator ends the request.

        Raises:
            ContextLengthError: as for `add`, at once.
            EngineError: as for `add`, at once; or while iterating, if the model's scores are not numbers.
        """
        return self._stream(self._admission.sequence(prompt_ids, params or SamplingParams()))

    def add_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """Let requests name an adapter; those that run go on beside it.

        Raises:
            EngineError: the name is taken, the adapter does not fit the model, or the engine is batch-invariant.
        """
        if self._runner.invariant:
            raise EngineError("adapters round with the batch", hint="merge the adapter, or leave batch_invariant out")
        self._adapters.add(name, adapter)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            NotFoundError: there is none of this name.
            EngineError: unfinished requests use it.
        """
        if users := [s.request_id for s in self._sequences.values() if s.params.adapter == name]:
            raise EngineError(
                f"{len(users)} unfinished requests use the adapter '{name}'",
                where=f"request {users[0]}",
                hint="cancel them, or wait for their ends",
            )
        self._adapters.remove(name)

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that requests can name."""
        return list(self._adapters.names)

    @torch.inference_mode()
    def logits(self, ids: Iterable[int], *, images: Iterable[PromptImage] = ()) -> Tensor:
        """Scores of every next token along a sequence, fp32 [S, V]; computed in chunks, outside the engine's cache.

        Raises:
            ContextLengthError: more tokens than the model's positions.
            EngineError: no tokens, or an id outside the vocabulary.
        """
        ids = self._admission.checked(ids)
        logits_SV = torch.empty(len(ids), self.model.config.vocab_size, device=self.device, dtype=torch.float32)
        for start, hidden_SE in self._hidden(ids, images):
            logits_SV[start : start + len(hidden_SE)] = self.model.logits(hidden_SE)
        return logits_SV

    @torch.inference_mode()
    def hidden_states(self, ids: Iterable[int]) -> Tensor:
        """The model's last hidden states along a sequence, fp32 [S, E], as `logits` computes its scores.

        Raises:
            ContextLengthError, EngineError: as for `logits`.
        """
        return torch.cat([hidden_SE.float() for _, hidden_SE in self._hidden(self._admission.checked(ids))])

    def _hidden(self, ids: list[int], images: Iterable[PromptImage] = ()) -> Iterator[tuple[int, Tensor]]:
        """First position and hidden states of one chunk after another."""
        if len(ids) > self.model.config.max_position_embeddings:
            raise ContextLengthError(
                f"{len(ids)} tokens are more than the model's context of {self.model.config.max_position_embeddings}",
                hint="score the text in pieces",
            )
        images, positions = self._admission.checked_images(ids, images)
        memory = self.model.image_memory(images, positions) if images else None
        cache = self._allocate(self._blocks.num_blocks_for(len(ids)))
        block_table = list(range(cache.num_blocks))
        for start in range(0, len(ids), self.max_batch_tokens):
            chunk = ids[start : start + self.max_batch_tokens]
            context = PagedContext(cache, [len(chunk)], [start], [block_table], [memory])
            yield start, self._runner.hidden(chunk, context)

    def save_cache(self, path: Path) -> int:
        """Write what the cache remembers to a file; how many blocks that is.

        Raises:
            ResourceError: the disk is too small.
        """
        return save_cache(path, self._blocks, self._runner.cache, self.model)

    def restore_cache(self, path: Path) -> int:
        """Remember what `save_cache` wrote, as far as there is room; how many blocks that is.

        Raises:
            NotFoundError: there is no such file.
            FormatError: it is broken, or was written with other weights.
        """
        return restore_cache(path, self._blocks, self._runner.cache, self.model)

    @torch.inference_mode()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace parameters by name, in place; those not named keep their values.

        Unfinished replies keep their tokens and go on with the new weights; their caches are computed again, and
        nothing that the cache remembers is used any more.

        Raises:
            EngineError: no parameter has this name or this shape. Tensors before it in the iterable have been taken.
        """
        self._scheduler.preempt_all()
        self._blocks.forget_all()
        parameters = self.model.state_dict()
        for name, tensor in named_tensors:
            if name not in parameters:
                raise EngineError(f"the model has no parameter '{name}'", hint=self._hint_for_missing(name, parameters))
            if tensor.shape != parameters[name].shape:
                shapes = f"{list(parameters[name].shape)}, not {list(tensor.shape)}"
                raise EngineError(f"the parameter '{name}' is shaped {shapes}")
            parameters[name].copy_(tensor)

    def _run_step(self) -> None:
        chunks = self._scheduler.schedule()
        if not chunks:
            return
        if self._proposer is not None and any(chunk.num_drafts for chunk in chunks):
            self._proposer.propose(chunks)
        logits_BV = self._runner.run(chunks)
        first_rows = accumulate((1 + len(chunk.drafts) if chunk.is_last else 0 for chunk in chunks), initial=0)
        sampled = [(chunk, row) for chunk, row in zip(chunks, first_rows, strict=False) if chunk.is_last]
        num_checked = 0
        while sampled or num_checked == 0:
            sampled = self._sample(chunks, sampled, logits_BV, num_checked)
            num_checked += 1
        if self.on_step:
            self.on_step(
                StepStats(
                    num_sequences=len(chunks),
                    num_tokens=sum(chunk.length + len(chunk.drafts) for chunk in chunks),
                    num_waiting=len(self._scheduler.waiting),
                    num_free_blocks=self._blocks.num_free,
                    num_preemptions=self._scheduler.num_preemptions,
                    num_reused_tokens=self._num_reused_tokens,
                    num_drafts=self._num_drafts,
                    num_accepted=self._num_accepted,
                )
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
        if len(rows) < len(logits_BV):
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
            is_open = sequence.request_id in self._sequences
            if is_open and chunk.drafts[num_checked : num_checked + 1] == [token]:
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
            self._blocks.forget(sequence.block_table)
            self._fail(
                sequence,
                "the model's scores are not numbers",
                "the weights are damaged, or their dtype is too narrow for the values",
            )
        elif token == NONE_LEFT:
            problem = sequence.grammar.problem if sequence.grammar else "every token is banned"
            self._fail(sequence, f"no token can come next: {problem}", "loosen the grammar or what is banned")
        elif token in sequence.stop_ids:
            self._finish(sequence, StepOutput(request_id, (), "stop", stop_token=token))
        else:
            try:
                is_whole = sequence.grammar is not None and sequence.grammar.accept(token)
            except EngineError as error:
                self._fail(sequence, error.what, "simplify the grammar")
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
                self._finish(sequence, output)
            else:
                self._deliver(output)

    def _fail(self, sequence: Sequence, what: str, hint: str) -> None:
        """End one request with an error; the others go on."""
        where = f"request {sequence.request_id}, after {len(sequence)} tokens"
        error = EngineError(what, where=where, hint=hint)
        self._finish(sequence, StepOutput(sequence.request_id, (), "error", error=error))

    def _deliver(self, output: StepOutput) -> None:
        self._inboxes.get(output.request_id, self._undelivered).append(output)

    def _finish(self, sequence: Sequence, output: StepOutput) -> None:
        self._remove(sequence)
        self._deliver(output)

    def _enqueue(self, sequence: Sequence, *, inbox: list[StepOutput] | None = None) -> None:
        if sequence.request_id in self._sequences:
            raise EngineError(f"the request id {sequence.request_id} is in use", hint="leave it out to get a fresh one")
        self._sequences[sequence.request_id] = sequence
        if inbox is not None:
            self._inboxes[sequence.request_id] = inbox
        self._scheduler.add(sequence)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]
        self._scheduler.remove(sequence)

    def _abandon(self, sequence: Sequence) -> None:
        """Leave nothing of a request of `generate` or `stream` behind, finished or not."""
        self._inboxes.pop(sequence.request_id, None)
        if self._sequences.get(sequence.request_id) is sequence:
            self._remove(sequence)

    def _stream(self, sequence: Sequence) -> Iterator[StepOutput]:
        self._enqueue(sequence, inbox=[])
        try:
            yield from self._outputs(sequence)
        finally:
            self._abandon(sequence)

    def _complete(self, sequence: Sequence) -> Completion:
        outputs = list(self._outputs(sequence))
        last = outputs[-1]
        assert last.finish_reason is not None
        return Completion(
            sequence.token_ids[sequence.num_prompt :],
            last.finish_reason,
            last.stop_token,
            [logprob for output in outputs for logprob in output.logprobs],
            list(sequence.prompt_logprobs),
        )

    def _outputs(self, sequence: Sequence) -> Iterator[StepOutput]:
        """The outputs of a request with an inbox, to the last; steps are run when there are none yet."""
        inbox = self._inboxes[sequence.request_id]
        while True:
            while not inbox:
                self._run_step()
            output = inbox.pop(0)
            if output.error is not None:
                raise output.error
            yield output
            if output.finish_reason is not None:
                return

    def _new_proposer(self, draft_model: LanguageModel | None) -> Proposer | None:
        if draft_model is None:
            return LookUp() if self._scheduler.num_drafts else None
        config, target = draft_model.config, self.model.config
        if config.vocab_size != target.vocab_size or config.max_position_embeddings < self.max_context:
            raise EngineError(
                f"a draft model of {config.vocab_size} tokens and {config.max_position_embeddings} positions cannot "
                f"guess for one of {target.vocab_size} tokens in a context of {self.max_context}",
                where="draft_model",
            )
        device, dtype = _device_and_dtype(draft_model)
        cache = allocate_cache(config, self._blocks.num_blocks, self._blocks.block_size, device=device, dtype=dtype)
        return DraftModel(draft_model, cache, self.max_batch_tokens)

    def _allocate(self, num_blocks: int, kind: type[PagedKVCache] = PagedKVCache) -> PagedKVCache:
        size = self._blocks.block_size
        return allocate_cache(self.model.config, num_blocks, size, device=self.device, dtype=self.dtype, kind=kind)

    def _hint_for_missing(self, name: str, parameters: Collection[str]) -> str | None:
        for path, module in self.model.named_modules():
            if isinstance(module, Matrix) and module.packed is not None and name == f"{path}.weight":
                return "this weight is packed; only dense ones can be replaced: load the model with packed=False"
        return did_you_mean(name, parameters)


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


def _device_and_dtype(model: LanguageModel) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what: those of its first parameter that is a floating-point number."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    return parameter.device, parameter.dtype
