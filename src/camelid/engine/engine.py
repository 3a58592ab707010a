"""The engine: continuous batching over a paged cache."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ContextLengthError, EngineError, did_you_mean
from camelid.engine.admission import Admission
from camelid.engine.block_manager import BlockManager
from camelid.engine.cache_file import restore_cache, save_cache
from camelid.engine.cache_size import allocate_cache, cache_capacity, checked_context, images_in_memory
from camelid.engine.decode_step import new_decode_step
from camelid.engine.invariant import check_rounds_alone_in_tiles, rounds_alone
from camelid.engine.kv_cache import CACHES, PagedContext, PagedKVCache
from camelid.engine.model_runner import ModelRunner
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion, Generator, StepOutput
from camelid.engine.requests import Requests
from camelid.engine.scheduler import Scheduler
from camelid.engine.speculate import DEFAULT_DRAFTS, DraftModel, LookUp
from camelid.engine.step import Stepper
from camelid.engine.turns import Turns
from camelid.model.base import LanguageModel
from camelid.model.linear import Matrix
from camelid.model.lora import Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor

    from camelid.engine.sequence import Sequence
    from camelid.engine.speculate import Proposer
    from camelid.engine.step import StepStats
    from camelid.engine.vocabulary import Vocabulary
    from camelid.model.image_memory import PromptImage
    from camelid.model.lora import LoraAdapter


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
    a time may use an engine, and a second one gets an EngineError; `generate` and `stream` may be mixed with `step`,
    which returns the outputs of `add` only.

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
        batch_invariant: compute each reply to the same bits whatever runs beside it, at a cost where the native kernels
            do not do so anyway (see `is_batch_invariant` and docs/decisions/0012).
        decode_graphs: record decoding steps on a CUDA device and replay them (docs/decisions/0020). Steps with guesses,
            adapters or images run as without. Elsewhere such steps run in the same form, unrecorded.
        compile: let torch.compile fuse decoding steps; the first few then take from seconds to minutes.
        num_drafts: tokens that are guessed ahead per step and checked together; 0: none. Replies stay the same.
        draft_model: who guesses, a smaller model of the same vocabulary; None: what followed the same words before.
        vocabulary: makes what the engine knows of text, for grammars, banned strings and DRY's breakers.
        on_step: called after each step. What it raises, the caller of the step gets; the step's outputs stay for the
            next.

    Raises:
        EngineError: an option that is no whole number, or too small, or of another kind, or that does not go with the
            others or with this model.
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
        decode_graphs: bool = False,
        compile: bool = False,
        num_drafts: int = 0,
        draft_model: LanguageModel | None = None,
        vocabulary: Callable[[], Vocabulary] | None = None,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        sizes = {"block_size": block_size, "max_sequences": max_sequences}
        optional = {
            "max_batch_tokens": max_batch_tokens,
            "max_context": max_context,
            "cache_tokens": cache_tokens,
            "cache_bytes": cache_bytes,
            "max_images": max_images,
        }
        for name, size in (sizes | {name: size for name, size in optional.items() if size is not None}).items():
            _require_whole(name, size, 1)
        _require_whole("num_drafts", num_drafts, 0)
        if draft_model is not None and not isinstance(draft_model, LanguageModel):
            raise EngineError(
                f"a draft model is a model, not {type(draft_model).__name__}",
                where="draft_model",
                hint="camelid.load(…).model is one",
            )
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.device, self.dtype = _device_and_dtype(model)
        self.max_batch_tokens = max_batch_tokens or (512 if self.device.type == "cpu" else 4096)
        self.on_step = on_step

        if cache_format not in CACHES:
            known = did_you_mean(str(cache_format), CACHES)
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
        proposer = self._new_proposer(draft_model)
        self._adapters = Adapters(model)
        is_native = rounds_alone(model, self.device, self.dtype)
        has_own_steps = decode_graphs or compile
        self.is_batch_invariant = batch_invariant or (is_native and not has_own_steps)
        """Whether a reply's bits hang on its own request alone, whatever runs beside it."""
        if batch_invariant:
            check_rounds_alone_in_tiles(model)
            if has_own_steps:
                raise EngineError("decoding steps of one form round with the batch", where="batch_invariant")
        cache = self._allocate(num_blocks + has_own_steps, cache_kind)  # they have a block for their padding
        self._runner = ModelRunner(model, cache, self._adapters, in_tiles=batch_invariant and not is_native)
        if has_own_steps:
            limits = {"max_sequences": max_sequences, "max_context": self.max_context}
            self._runner.decode_step = new_decode_step(model, cache, recorded=decode_graphs, compiled=compile, **limits)
        self._requests = Requests(self._scheduler)
        self._turns = Turns(lambda: self._scheduler.rebuild(self._requests))
        self._stepper = Stepper(self._scheduler, self._runner, proposer, self._requests)
        self._admission = Admission(
            model.config, self.max_context, self.stop_ids, vocabulary, self._adapters, self.max_images
        )

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
        with self._turns.take():
            settings = SamplingParams() if params is None else params
            sequence = self._admission.sequence(prompt_ids, settings, request_id, images=images)
            self._requests.add(sequence)
        return sequence.request_id

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything left to do or to return."""
        return not self._requests.is_empty

    def step(self) -> list[StepOutput]:
        """One forward pass; what each request of `add` got since the last call, and the ends of those cancelled.

        A request whose logits are not numbers ends with finish reason "error"; the others go on.
        """
        self._run_step()
        return self._requests.take()

    def cancel(self, request_id: int) -> None:
        """End a request; the next step returns its last output. One that has ended already is left alone."""
        with self._turns.take():
            if sequence := self._requests.get(request_id):
                self._requests.finish(sequence, StepOutput(request_id, (), "cancelled"))

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
        if not isinstance(prompts, Iterable):
            raise EngineError(f"prompts are lists of token ids, not {type(prompts).__name__}")
        prompts = list(prompts)
        each = list(params) if isinstance(params, Iterable) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many sampling settings, or one for all, not {len(each)}")
        of_each = [()] * len(prompts) if images is None else [tuple(own) for own in images]
        if len(of_each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many lists of images, not {len(of_each)}")
        sequences: list[Sequence] = []
        try:
            with self._turns.take():
                sequences += [
                    self._admission.sequence(prompt, sample_params, images=own)
                    for prompt, p, own in zip(prompts, each, of_each, strict=True)
                    for sample_params in (p.samples() if isinstance(p, SamplingParams) else [p])
                ]
                for sequence in sequences:
                    sequence.inbox = []
                    self._requests.add(sequence)
            return [self._complete(sequence) for sequence in sequences]
        finally:
            for sequence in sequences:
                self._turns.when_free(partial(self._requests.abandon, sequence))

    def stream(self, prompt_ids: Iterable[int], params: SamplingParams | None = None) -> Iterator[StepOutput]:
        """The reply as it comes, one output per step; the request is queued by the first `next`.

        Closing or dropping the iterator ends the request.

        Raises:
            ContextLengthError: as for `add`, at once.
            EngineError: as for `add`, at once; or while iterating, if the model's scores are not numbers.
        """
        return self._stream(self._admission.sequence(prompt_ids, SamplingParams() if params is None else params))

    def add_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """Let requests name an adapter; those that run go on beside it.

        Raises:
            EngineError: the name is taken, the adapter does not fit the model, or the engine is batch-invariant without
                native kernels.
        """
        if self._runner.in_tiles:
            raise EngineError("adapters round with the batch", hint="merge the adapter, or leave batch_invariant out")
        with self._turns.take():
            self._adapters.add(name, adapter)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            NotFoundError: there is none of this name.
            EngineError: unfinished requests use it.
        """
        with self._turns.take():
            if users := [s.request_id for s in self._requests if s.params.adapter == name]:
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
        with self._turns.take():
            for start, hidden_SE in self._hidden(ids, images):
                logits_SV[start : start + len(hidden_SE)] = self.model.logits(hidden_SE)
        return logits_SV

    @torch.inference_mode()
    def hidden_states(self, ids: Iterable[int]) -> Tensor:
        """The model's last hidden states along a sequence, fp32 [S, E], as `logits` computes its scores.

        Raises:
            ContextLengthError, EngineError: as for `logits`.
        """
        with self._turns.take():
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
        with self._turns.take():
            return save_cache(path, self._blocks, self._runner.cache, self.model)

    def restore_cache(self, path: Path) -> int:
        """Remember what `save_cache` wrote, as far as there is room; how many blocks that is.

        Raises:
            NotFoundError: there is no such file.
            FormatError: it is broken, or was written with other weights.
        """
        with self._turns.take():
            return restore_cache(path, self._blocks, self._runner.cache, self.model)

    @torch.inference_mode()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace parameters by name, in place; those not named keep their values.

        Unfinished replies keep their tokens and go on with the new weights; their caches are computed again, and
        nothing that the cache remembers is used any more.

        Raises:
            EngineError: no parameter has this name or this shape. Tensors before it in the iterable have been taken.
        """
        with self._turns.take():
            self._scheduler.preempt_all()
            self._blocks.forget_all()
            parameters = self.model.state_dict()
            for name, tensor in named_tensors:
                if name not in parameters:
                    hint = self._hint_for_missing(name, parameters)
                    raise EngineError(f"the model has no parameter '{name}'", hint=hint)
                if tensor.shape != parameters[name].shape:
                    shapes = f"{list(parameters[name].shape)}, not {list(tensor.shape)}"
                    raise EngineError(f"the parameter '{name}' is shaped {shapes}")
                parameters[name].copy_(tensor)

    def _run_step(self) -> None:
        with self._turns.take():
            stats = self._stepper.run()
        if stats is not None and self.on_step:
            self.on_step(stats)

    def _stream(self, sequence: Sequence) -> Iterator[StepOutput]:
        try:
            with self._turns.take():
                self._admission.check_again(sequence)
                sequence.inbox = []
                self._requests.add(sequence)
            yield from self._outputs(sequence)
        finally:
            self._turns.when_free(partial(self._requests.abandon, sequence))

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
        inbox = sequence.inbox
        assert inbox is not None
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


def _require_whole(name: str, size: object, least: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise EngineError(f"{name} must be a whole number, not {size!r}", where=name)
    if size < least:
        raise EngineError(f"{name} must be at least {least}, not {size}", where=name)


def _device_and_dtype(model: LanguageModel) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what: those of its first parameter that is a floating-point number."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    return parameter.device, parameter.dtype
