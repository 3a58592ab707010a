"""Who may come in: a prompt and its settings become a sequence, or are refused before anything has run."""

from __future__ import annotations

import secrets
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING

from camelid.base.errors import ContextLengthError, EngineError, SamplingError
from camelid.engine.block_manager import root_key
from camelid.engine.params import SamplingParams
from camelid.engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from camelid.engine.grammar import GrammarCompiler
    from camelid.engine.vocabulary import Vocabulary
    from camelid.model.base import ModelConfig
    from camelid.model.image_memory import PromptImage
    from camelid.model.lora import Adapters


class Admission:
    """Checks requests against the model and the engine's limits.

    Args:
        config: the model's.
        max_context: tokens of prompt and reply that a sequence may have.
        stop_ids: the model's own end tokens.
        vocabulary: makes what the engine knows of text, when that is first needed; None: it knows none.
        adapters: those that requests may name.
        max_images: images that a request may have.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_context: int,
        stop_ids: frozenset[int],
        vocabulary: Callable[[], Vocabulary] | None,
        adapters: Adapters,
        max_images: int = 0,
    ) -> None:
        self.config = config
        self.max_context = max_context
        self.stop_ids = stop_ids
        self.adapters = adapters
        self.max_images = max_images
        self._make_vocabulary = vocabulary
        self._next_request_id = 0

    def sequence(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams,
        request_id: int | None = None,
        *,
        images: Iterable[PromptImage] = (),
    ) -> Sequence:
        """A new request, with a fresh id unless given.

        Raises:
            ContextLengthError: the prompt leaves no room for a reply.
            EngineError: an empty prompt, an id outside the vocabulary, more or fewer images than image tokens, or
                settings or a request id of another type.
            SamplingError: settings that this engine cannot honour.
            NotFoundError: there is no such adapter.
        """
        if not isinstance(params, SamplingParams):
            raise EngineError(f"the settings of a request are SamplingParams, not {type(params).__name__}")
        if request_id is not None and (isinstance(request_id, bool) or not isinstance(request_id, int)):
            raise EngineError(f"a request id is a whole number, not {request_id!r}", where="request_id")
        if params.n != 1:
            raise SamplingError(f"a request is one sample, not {params.n}", where="n", hint="add params.samples()")
        ids = self.checked(prompt_ids)
        if params.truncate:
            ids = ids[-max(self.max_context - (params.max_tokens or 1), 1) :]
        images, positions = self.checked_images(ids, images)
        if images and params.prompt_logprobs is not None:
            raise SamplingError("an image's token has no log-probability", where="prompt_logprobs")
        if len(ids) >= self.max_context:
            by_cache = self.max_context < self.config.max_position_embeddings
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_context}, reply included",
                hint="shorten the prompt, or cut it off with truncate=True"
                + (", or give the engine a longer max_context or a larger cache" * by_cache),
            )
        self._check_token_ids(params)
        if request_id is None:
            request_id = self._next_request_id
        self._next_request_id = max(self._next_request_id, request_id + 1)
        return Sequence(
            request_id=request_id,
            token_ids=ids,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids)
            | (frozenset() if params.ignore_eos and not params.has_grammar else self.stop_ids),
            max_length=min(self.max_context, len(ids) + (params.max_tokens or self.max_context)),
            root=self._root(params, images),
            images=images,
            image_positions=positions,
            priority=params.priority,
            owner=params.owner,
            may_reuse=params.prompt_logprobs is None,
            banned_texts=tuple(self._vocabulary.banned(text) for text in params.banned_strings),
            dry_breakers=self._breakers(params),
            grammar=self._grammars.compile(params) if params.has_grammar else None,
        )

    def check_again(self, sequence: Sequence) -> None:
        """Refuse a sequence that was made earlier and that the engine's adapters now read differently.

        Raises:
            NotFoundError: its adapter is gone.
            EngineError: there is another of the same name.
        """
        if self._root(sequence.params, sequence.images) != sequence.root:
            raise EngineError(
                f"the adapter '{sequence.params.adapter}' is another than when the request was made",
                where=f"request {sequence.request_id}",
                hint="make the request again",
            )

    def _root(self, params: SamplingParams, images: Iterable[PromptImage]) -> bytes:
        return root_key(params.cache_salt, self.adapters.identity(params.adapter), *(image.digest for image in images))

    def checked(self, token_ids: Iterable[int]) -> list[int]:
        """The ids as a list.

        Raises:
            EngineError: there are none, or they are no ids of the model's.
        """
        try:
            ids = [index(i) for i in token_ids]
        except TypeError as error:
            raise EngineError("a prompt is a sequence of integers", hint="encode text first") from error
        if not ids:
            raise EngineError("there are no tokens to go on from", hint="give at least one token, BOS for instance")
        num_ids = self.config.num_embeddings
        for extreme in (min(ids), max(ids)):
            if not 0 <= extreme < num_ids:
                raise EngineError(
                    f"the token id {extreme} is outside the vocabulary of {num_ids}",
                    where=f"position {ids.index(extreme)}",
                    hint="does the tokenizer belong to this model?",
                )
        return ids

    def checked_images(
        self, ids: list[int], images: Iterable[PromptImage]
    ) -> tuple[tuple[PromptImage, ...], tuple[int, ...]]:
        """The images of a prompt, and where their tokens stand.

        Raises:
            EngineError: the model reads none, or there are more or fewer than image tokens, or than allowed.
        """
        images, token = tuple(images), self.config.image_token_id
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

    def _check_token_ids(self, params: SamplingParams) -> None:
        for name, ids in (
            ("banned_token_ids", params.banned_token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", [token for token, _ in params.logit_bias]),
        ):
            if outside := [token for token in ids if token >= self.config.vocab_size]:
                raise SamplingError(
                    f"{name} has the token id {outside[0]}, outside the vocabulary of {self.config.vocab_size}",
                    where=name,
                )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        if self._make_vocabulary is None:
            raise SamplingError(
                "this engine knows token ids only, and the settings speak of text",
                hint="give the Engine a vocabulary, or use camelid.load",
            )
        return self._make_vocabulary()

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        from camelid.engine.grammar import GrammarCompiler

        return GrammarCompiler(self._vocabulary, self.config.vocab_size, self.stop_ids)

    def _breakers(self, params: SamplingParams) -> frozenset[int]:
        if not params.dry_multiplier or self._make_vocabulary is None:
            return frozenset()
        return frozenset().union(*map(self._vocabulary.tokens_with, params.dry_sequence_breakers))
