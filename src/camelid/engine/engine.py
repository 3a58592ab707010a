"""The engine: continuous batching over a paged cache."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ContextLengthError, EngineError, ResourceError, did_you_mean
from camelid.base.files import format_bytes
from camelid.base.runtime import available_memory
from camelid.engine.block_manager import BlockManager
from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.engine.model_runner import ModelRunner
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion, Generator, StepOutput
from camelid.engine.sampling import sample
from camelid.engine.scheduler import Scheduler
from camelid.engine.sequence import Sequence
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from torch import Tensor

    from camelid.model.base import LanguageModel
    from camelid.model.image_memory import PromptImage

MEMORY_SHARE = 0.25
"""Of the free memory, what the cache may take if its size is not given."""

ASSUMED_MEMORY = 4 * 2**30
"""Bytes taken to be free where the system does not say."""


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
    num_preemptions: int
    """Since the engine was made."""


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

    Args:
        model: any `LanguageModel`, on its device and in its dtype. Steps run it in evaluation mode and leave it so.
        stop_ids: the model's own end tokens; `ignore_eos` goes past them.
        max_context: tokens of prompt and reply that a sequence may have. Default: the model's, or what the cache holds.
        cache_tokens: tokens that the cache holds, all sequences together. Default: `max_sequences` full contexts within
            a quarter of the free memory. A CPU commits the memory only as it is used.
        cache_bytes: the same in bytes, in place of `cache_tokens`.
        block_size: tokens per cache block.
        max_batch_tokens: tokens per forward pass; longer prompts run in chunks. More is quicker on a big device, fewer
            keeps running replies fluent while a long prompt arrives. Default: 512 on a CPU, else 4096.
        max_sequences: sequences that run at one time; more wait.
        max_images: images of running sequences together, whose keys and values are held. Default: as many as fit into
            an eighth of the free memory, but at least one.
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
        block_size: int = 16,
        max_batch_tokens: int | None = None,
        max_sequences: int = 64,
        max_images: int | None = None,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        sizes = {"block_size": block_size, "max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}
        sizes |= {"max_context": max_context, "cache_tokens": cache_tokens, "max_images": max_images}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise EngineError(f"{name} must be at least 1, not {size}", where=name)
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.device, self.dtype = _device_and_dtype(model)
        self.max_batch_tokens = max_batch_tokens or (512 if self.device.type == "cpu" else 4096)
        self.on_step = on_step

        positions = model.config.max_position_embeddings
        if max_context is not None and max_context > positions:
            raise ContextLengthError(
                f"max_context is {max_context} and the model's positions end at {positions}",
                hint=f"max_context may be up to {positions}",
            )
        context = max_context or positions
        if cache_bytes is not None:
            cache_tokens = cache_bytes // PagedKVCache.bytes_per_token(model.config, self.dtype)
        elif cache_tokens is None:
            cache_tokens = self._tokens_in_memory()
        capacity = cache_tokens // block_size * block_size
        if capacity < (max_context or 1):
            raise ResourceError(
                f"a context of {max_context or 1} tokens does not fit into a cache of {capacity}",
                hint="raise cache_tokens or cache_bytes, or lower max_context",
            )
        self.max_context = min(context, capacity)
        """Tokens of prompt and reply that a sequence may have."""

        num_blocks = min(capacity // block_size, -(-context // block_size) * max_sequences)
        self._blocks = BlockManager(num_blocks, block_size)
        self.max_images = max_images or self._images_in_memory()
        """Images that a sequence may have."""
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=max_sequences,
            max_images=self.max_images,
        )
        self._runner = ModelRunner(model, self._allocate(num_blocks))
        self._next_request_id = 0
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
        """
        sequence = self._sequence(prompt_ids, params or SamplingParams(), request_id, images=images)
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
        """One completion per prompt, in order; one `params` for all, or one each; the images of each, if any has some.

        Raises:
            ContextLengthError: as for `add`; nothing has run then.
            EngineError: as for `add`, or the model's scores for one of the prompts are not numbers; all are given up
                then.
        """
        prompts = list(prompts)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many sampling settings, or one for all, not {len(each)}")
        of_each = [()] * len(prompts) if images is None else list(images)
        if len(of_each) != len(prompts):
            raise EngineError(f"{len(prompts)} prompts need as many lists of images, not {len(of_each)}")
        sequences = [
            self._sequence(prompt, p, images=own) for prompt, p, own in zip(prompts, each, of_each, strict=True)
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
        return self._stream(self._sequence(prompt_ids, params or SamplingParams()))

    @torch.inference_mode()
    def logits(self, ids: Iterable[int], *, images: Iterable[PromptImage] = ()) -> Tensor:
        """Scores of every next token along a sequence, fp32 [S, V]; computed in chunks, outside the engine's cache.

        Raises:
            ContextLengthError: more tokens than the model's positions.
            EngineError: no tokens, or an id outside the vocabulary.
        """
        ids = self._checked(ids)
        config = self.model.config
        if len(ids) > config.max_position_embeddings:
            raise ContextLengthError(
                f"{len(ids)} tokens are more than the model's context of {config.max_position_embeddings}",
                hint="score the text in pieces",
            )
        images, positions = self._checked_images(ids, images)
        memory = self.model.image_memory(images, positions) if images else None
        cache = self._allocate(self._blocks.num_blocks_for(len(ids)))
        block_table = list(range(cache.num_blocks))
        logits_SV = torch.empty(len(ids), config.vocab_size, device=self.device, dtype=torch.float32)
        for start in range(0, len(ids), self.max_batch_tokens):
            chunk = ids[start : start + self.max_batch_tokens]
            context = PagedContext(cache, [len(chunk)], [start], [block_table], [memory])
            hidden_SE = self._runner.hidden(chunk, context)
            logits_SV[start : start + len(chunk)] = self.model.logits(hidden_SE)
        return logits_SV

    @torch.inference_mode()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace parameters by name, in place; those not named keep their values.

        Unfinished replies keep their tokens and go on with the new weights; their caches are computed again.

        Raises:
            EngineError: no parameter has this name or this shape. Tensors before it in the iterable have been taken.
        """
        self._scheduler.preempt_all()
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
        sampled = [chunk.sequence for chunk in chunks if chunk.is_last]
        tokens = sample(self._runner.run(chunks), sampled)
        # Nothing is noted before this line: a step that failed or was interrupted runs again as it was.
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.length
        for sequence, token in zip(sampled, tokens, strict=True):
            self._advance(sequence, token)
        if self.on_step:
            self.on_step(
                StepStats(
                    num_sequences=len(chunks),
                    num_tokens=sum(chunk.length for chunk in chunks),
                    num_waiting=len(self._scheduler.waiting),
                    num_free_blocks=self._blocks.num_free,
                    num_preemptions=self._scheduler.num_preemptions,
                )
            )

    def _advance(self, sequence: Sequence, token: int | None) -> None:
        """Add a sampled token to its sequence, and end it if that was the last."""
        request_id = sequence.request_id
        if token is None:
            error = EngineError(
                "the model's scores are not numbers",
                where=f"request {request_id}, after {len(sequence)} tokens",
                hint="the weights are damaged, or their dtype is too narrow for the values",
            )
            self._finish(sequence, StepOutput(request_id, (), "error", error=error))
        elif token in sequence.stop_ids:
            self._finish(sequence, StepOutput(request_id, (), "stop", stop_token=token))
        else:
            sequence.token_ids.append(token)
            if len(sequence) < sequence.max_length:
                self._deliver(StepOutput(request_id, (token,)))
            else:
                self._finish(sequence, StepOutput(request_id, (token,), "length"))

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
        *_, last = self._outputs(sequence)
        assert last.finish_reason is not None
        return Completion(sequence.token_ids[sequence.num_prompt :], last.finish_reason, last.stop_token)

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

    def _sequence(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams,
        request_id: int | None = None,
        *,
        images: Iterable[PromptImage] = (),
    ) -> Sequence:
        ids = self._checked(prompt_ids)
        images, positions = self._checked_images(ids, images)
        if len(ids) >= self.max_context:
            by_cache = self.max_context < self.model.config.max_position_embeddings
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_context}, reply included",
                hint="shorten the prompt" + (", or give the engine a longer max_context or a larger cache" * by_cache),
            )
        if request_id is None:
            request_id = self._next_request_id
        self._next_request_id = max(self._next_request_id, request_id + 1)
        return Sequence(
            request_id=request_id,
            token_ids=ids,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.stop_ids),
            max_length=min(self.max_context, len(ids) + (params.max_tokens or self.max_context)),
            images=images,
            image_positions=positions,
        )

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        try:
            ids = [index(i) for i in token_ids]
        except TypeError as error:
            raise EngineError("a prompt is a sequence of integers", hint="encode text first") from error
        if not ids:
            raise EngineError("there are no tokens to go on from", hint="give at least one token, BOS for instance")
        num_ids = self.model.config.num_embeddings
        for extreme in (min(ids), max(ids)):
            if not 0 <= extreme < num_ids:
                raise EngineError(
                    f"the token id {extreme} is outside the vocabulary of {num_ids}",
                    where=f"position {ids.index(extreme)}",
                    hint="does the tokenizer belong to this model?",
                )
        return ids

    def _checked_images(
        self, ids: list[int], images: Iterable[PromptImage]
    ) -> tuple[tuple[PromptImage, ...], tuple[int, ...]]:
        """The images of a prompt, and where their tokens stand."""
        images, token = tuple(images), self.model.config.image_token_id
        positions = tuple(position for position, i in enumerate(ids) if i == token)
        if token is None and images:
            raise EngineError("this model reads text only", hint="leave the images out, or take a model for them")
        if len(positions) != len(images):
            raise EngineError(f"the prompt has {len(positions)} image tokens and {len(images)} images")
        if len(images) > self.max_images:
            raise EngineError(
                f"the prompt has {len(images)} images; {self.max_images} is the most", hint="raise max_images"
            )
        return images, positions

    def _hint_for_missing(self, name: str, parameters: Collection[str]) -> str | None:
        for path, module in self.model.named_modules():
            if isinstance(module, Matrix) and module.packed is not None and name == f"{path}.weight":
                return "this weight is packed; only dense ones can be replaced: load the model with packed=False"
        return did_you_mean(name, parameters)

    def _tokens_in_memory(self) -> int:
        """Tokens whose keys and values fit into the cache's share of the free memory."""
        share = int(self._free_memory() * MEMORY_SHARE)
        return share // PagedKVCache.bytes_per_token(self.model.config, self.dtype)

    def _images_in_memory(self) -> int:
        """Images whose keys and values fit into half as much, at least one; 0 if the model reads none."""
        per_image = self.model.config.kv_elements_per_image * self.dtype.itemsize
        return max(int(self._free_memory() * MEMORY_SHARE / 2) // per_image, 1) if per_image else 0

    def _free_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return available_memory() or ASSUMED_MEMORY

    def _allocate(self, num_blocks: int) -> PagedKVCache:
        block_size = self._blocks.block_size
        try:
            return PagedKVCache(self.model.config, num_blocks, block_size, device=self.device, dtype=self.dtype)
        except RuntimeError as error:
            num_bytes = PagedKVCache.bytes_per_token(self.model.config, self.dtype) * num_blocks * block_size
            raise ResourceError(
                f"there is no memory for a cache of {format_bytes(num_bytes)}",
                hint="lower cache_tokens, or free some memory",
            ) from error


def _device_and_dtype(model: LanguageModel) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what: those of its first parameter that is a floating-point number."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    return parameter.device, parameter.dtype
