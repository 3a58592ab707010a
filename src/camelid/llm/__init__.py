"""`LLM`: a checkpoint, its tokenizer, its chat format and an engine, as one object that speaks text.

llm = camelid.load("smollm2-135m-instruct")
llm.generate("Once upon a time", max_tokens=20).text
llm.generate([{"role": "user", "content": "Hello"}], temperature=0.6, top_p=0.9, seed=1).text
for chunk in llm.stream("Once upon a time", max_tokens=20):
    print(chunk.text, end="", flush=True)
llm.generate("What is this?", images=[Path("cat.png")]).text  # by a model that reads images
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import fields, replace
from functools import cached_property
from inspect import signature
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from camelid.base.errors import (
    CamelidError,
    ChatFormatError,
    ConfigError,
    EngineError,
    SamplingError,
    TokenizerError,
    did_you_mean,
)
from camelid.engine.params import SamplingParams
from camelid.llm.prompts import Message, Prompt, is_batch, is_conversation, is_texts, token_ids_of
from camelid.llm.reply import Chunk, Generation
from camelid.llm.shared_engine import Prepared, SharedEngine

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from camelid.engine.engine import Engine
    from camelid.engine.vocabulary import Vocabulary
    from camelid.model.base import LanguageModel
    from camelid.model.image_files import ImageSource
    from camelid.model.image_memory import PromptImage
    from camelid.model.image_reader import ImageReader
    from camelid.tokenizer import Tokenizer
    from camelid.tokenizer.chat_format import ChatFormat

__all__ = ["LLM", "Chunk", "Generation", "Message", "Prompt", "check_tokenizer_fits", "load", "sampling_params"]

Pooling: TypeAlias = Literal["mean", "last"]
"""How the states of a text's tokens become one vector."""

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""JSON schemas of tools."""


def load(
    path_or_name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    packed: bool | None = None,
    quantize: str | None = None,
    chat_format: str | None = None,
    **engine_options: Any,
) -> LLM:
    """Open a model: weights, tokenizer, chat format.

    Args:
        path_or_name: a folder, a file, a catalogue name (`camelid models`) or a hub id that has been pulled.
        device: "cpu", "cuda", …; None picks the best present.
        dtype: "float32", "bfloat16" or "float16"; None keeps what suits the device.
        packed: keep quantised weights in their blocks; None: wherever there is a native kernel for them.
        quantize: "int8", "int4" or "int8_dynamic" (activations in 8 bits too): what torchao packs projections into once
            they are loaded (`pip install 'camelid[torchao]'`); int4 in bfloat16 on a CUDA device only.
        chat_format: "llama2", "llama3" or "chatml"; None: the one that the model came with.
        engine_options: further arguments of `camelid.engine.engine.Engine`.

    Raises:
        NotFoundError: no such path or name, or no such chat format; the hint holds the nearest ones.
        FormatError: a file is not what it says it is.
        TokenizerError: the tokenizer does not fit the model.
        EngineError: an unknown engine option.
        ResourceError: the model does not fit into memory, or torchao is not installed.
        ConfigError: `quantize` does not go with `packed`, the device, the dtype or the model's shape.
    """
    from camelid.base.runtime import parse_dtype, pick_device
    from camelid.checkpoint import load_model, model_config, open_checkpoint
    from camelid.checkpoint.catalogue import resolve

    if packed and quantize:
        raise ConfigError(
            f"weights cannot be kept packed and become {quantize}", where="quantize", hint="leave packed out"
        )
    checkpoint = open_checkpoint(resolve(str(path_or_name)))
    try:
        tokenizer = checkpoint.load_tokenizer()
        check_tokenizer_fits(tokenizer, model_config(checkpoint).num_embeddings, where=checkpoint.path)
        model = load_model(
            checkpoint,
            device=pick_device(None if device is None else str(device)),
            dtype=None if dtype is None else parse_dtype(dtype),
            packed=False if quantize else packed,
        )
        if quantize:
            from camelid.model.device_weights import pack_projections

            pack_projections(model, quantize)
        return LLM(
            model,
            tokenizer,
            chat_template=checkpoint.chat_template,
            generation_config={"eos_token_id": checkpoint.stated("eos_token_id"), **checkpoint.generation_config},
            preprocessor_config=checkpoint.preprocessor_config,
            chat_format=chat_format,
            **engine_options,
        )
    finally:
        checkpoint.close()


def check_tokenizer_fits(tokenizer: Tokenizer, num_embeddings: int, where: object = None) -> None:
    """Refuse a tokenizer that makes ids the model has no embedding for.

    Raises:
        TokenizerError: the tokenizer's vocabulary is larger than the model's.
    """
    if tokenizer.vocab_size > num_embeddings:
        raise TokenizerError(
            f"the tokenizer does not fit the model: it has {tokenizer.vocab_size} ids, the model {num_embeddings}",
            where=where,
            hint="use the tokenizer that the model was trained with",
        )


class LLM:
    """A language model that takes and gives text, token ids or conversations.

    Threads may share one: what they ask for at the same time runs in the same batches.

    Args:
        model: the weights.
        tokenizer: its tokenizer.
        chat_template: the Jinja template that came with it, if any.
        generation_config: the contents of a `generation_config.json`; its end tokens stop replies.
        preprocessor_config: the contents of a `preprocessor_config.json`, if the model reads images.
        chat_format: the name of one of `camelid.tokenizer.chat.CHAT_FORMATS`, in place of the template.
        engine_options: further arguments of `camelid.engine.engine.Engine`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        generation_config: Mapping[str, Any] | None = None,
        preprocessor_config: Mapping[str, Any] | None = None,
        chat_format: str | None = None,
        **engine_options: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.generation_config = dict(generation_config or {})
        self.preprocessor_config = dict(preprocessor_config or {})
        self._chat_format_name = chat_format
        self._engine_options = _known_engine_options(engine_options)
        self._engine: Engine | None = None
        self._making = Lock()
        self._shared = SharedEngine(
            lambda: self.engine, lambda continuing: self.tokenizer.stream(continuing=continuing)
        )

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How conversations become token ids.

        Raises:
            ChatFormatError: the model came without one (a base model), or its tokens are not those of the one named.
            NotFoundError: there is none of the name.
        """
        from camelid.tokenizer.chat import chat_format_for

        return chat_format_for(self.tokenizer, template=self.chat_template, name=self._chat_format_name)

    @property
    def engine(self) -> Engine:
        """The engine that runs the model, made when it is first asked for; threads get the same one."""
        with self._making:
            if self._engine is None:
                from camelid.engine.engine import Engine

                stop_ids = tuple(sorted(self.stop_ids))
                self._engine = Engine(
                    self.model, stop_ids=stop_ids, vocabulary=self._vocabulary, **self._engine_options
                )
            return self._engine

    def _vocabulary(self) -> Vocabulary:
        """The bytes of every token, for the engine's grammars."""
        from camelid.engine.vocabulary import Vocabulary

        tokenizer = self.tokenizer
        control = {token_id: name.encode() for name, token_id in tokenizer.special.ids.items()}
        token_bytes = []
        for token_id in range(tokenizer.vocab_size):
            try:
                data = tokenizer.token_bytes(token_id)
            except TokenizerError:  # an id without a token
                data = b""
            token_bytes.append(b"" if token_id in control else data)
        return Vocabulary(token_bytes, control, tokenizer.encode)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the model's end token, its generation config's, and its chat format's."""
        configured = self.generation_config.get("eos_token_id", [])
        ids = set(configured) if isinstance(configured, list) else {configured}
        ids.add(self.tokenizer.special.eos)
        with suppress(ChatFormatError):  # a base model has no turns to end
            ids.update(self.chat_format.stop_ids)
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def image_reader(self) -> ImageReader:
        """What prepares images for the model.

        Raises:
            CamelidError: the model reads text only.
        """
        if self.model.image_reader_class is None:
            raise CamelidError("this model reads text only", hint="talk to one that reads images")
        return self.model.image_reader_class.from_hf(self.preprocessor_config, self.model.config)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply together: what the model was made for, or what the cache holds if that is less."""
        return self.engine.max_context

    def encode_prompt(self, prompt: Prompt, *, tools: Tools | None = None) -> list[int]:
        """The token ids that the model is given for a prompt.

        Text starts with the begin-of-sequence token where the model wants one; ids are taken as they are; a
        conversation ends with the header of the assistant's turn. One token stands for each image.
        """
        return self._encode(prompt, tools, 0)[0]

    def _encode(
        self, prompt: Prompt, tools: Tools | None, num_images: int
    ) -> tuple[list[int], Sequence[object | None]]:
        """The token ids of a prompt with images beside it, and what it shows itself: None for each image from there."""
        beside = [None] * num_images
        if isinstance(prompt, str):
            start = self.tokenizer.encode("", bos=self.tokenizer.special.add_bos)
            ids = self.tokenizer.encode(prompt, bos=self.tokenizer.special.add_bos)
            if num_images:  # before the text, as the models were trained
                assert ids[: len(start)] == start
                ids[len(start) : len(start)] = [self._image_token_id] * num_images
            return ids, beside
        if not is_conversation(prompt):
            return self._with_image_tokens(token_ids_of(prompt)), beside
        rendered = self.chat_format.render(prompt, tools=tools, add_generation_prompt=True)
        return self._with_image_tokens(rendered.ids), rendered.images

    @property
    def _image_token_id(self) -> int:
        token = self.model.config.image_token_id
        if token is None:
            raise CamelidError("this model reads text only", hint="talk to one that reads images")
        return token

    def _with_image_tokens(self, ids: list[int]) -> list[int]:
        """Ids whose image tokens are the model's: a tokenizer from Meta has another."""
        from camelid.tokenizer.chat_images import IMAGE_TOKEN

        own, wanted = self.tokenizer.special.ids.get(IMAGE_TOKEN), self.model.config.image_token_id
        if own is None or wanted is None or own == wanted:
            return ids
        return [wanted if token == own else token for token in ids]

    def _read_images(self, sources: Sequence[object]) -> list[PromptImage]:
        from camelid.model.image_files import open_image

        return [self.image_reader.read(open_image(source)) for source in sources]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Scores of every next token at every position: fp32 [S, V], row s after ids[: s + 1].

        Raises:
            ContextLengthError: more ids than the context holds.
        """
        with self._shared.lock:
            return self.engine.logits(ids)

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Tools | None = ...,
        images: Sequence[ImageSource] | None = ...,
        n: None = ...,
        **sampling: Any,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Tools | None = ...,
        images: Sequence[ImageSource] | None = ...,
        n: int,
        **sampling: Any,
    ) -> list[Generation]: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, tools: Tools | None = ..., n: None = ..., **sampling: Any
    ) -> list[Generation]: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, tools: Tools | None = ..., n: int, **sampling: Any
    ) -> list[list[Generation]]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        n: int | None = None,
        **sampling: Any,
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """Continue a text, continue token ids or answer a conversation; a list of prompts runs as one batch.

        Args:
            prompt: text, token ids, messages, or a list of any of these.
            tools: JSON schemas of tools that a conversation may call.
            images: of a single prompt: they come before a text, fill the places of a conversation's `{"type": "image"}`
                parts, and stand for the image tokens among ids, in order.
            n: give a list of so many replies in place of each reply.
            sampling: fields of `SamplingParams`; greedy by default.

        Raises:
            ContextLengthError: the prompt leaves no room for a reply.
            SamplingError: an unknown or impossible sampling setting.
            CamelidError: images for a model that reads text only, for a batch, or more or fewer than have a place.
        """
        params = sampling_params(sampling if n is None else {**sampling, "n": n})
        if not is_batch(prompt):
            batch = [self._prepare(cast("Prompt", prompt), tools, params, images)]
        elif images is not None:
            raise CamelidError("images belong to one prompt", hint="in a batch, show them in the messages' content")
        else:
            batch = [self._prepare(one, tools, params) for one in cast("Sequence[Prompt]", prompt)]
        replies = self._shared.run([replace(one, params=sample) for one in batch for sample in params.samples()])
        per_prompt = [replies[start : start + params.n] for start in range(0, len(replies), params.n)]
        if n is None:
            return replies if is_batch(prompt) else replies[0]
        return per_prompt if is_batch(prompt) else per_prompt[0]

    def stream(
        self,
        prompt: Prompt,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        **sampling: Any,
    ) -> Generator[Chunk]:
        """`generate` for one prompt, piece by piece; closing the iterator cancels the rest."""
        return self._shared.stream(self._prepare(prompt, tools, sampling_params(sampling), images))

    async def astream(
        self,
        prompt: Prompt,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[Chunk]:
        """`stream` for `async for`: steps run on a thread, and many streams share them.

        A task that is cancelled, or an iterator that is closed or dropped, cancels the rest.
        """
        prepared = self._prepare(prompt, tools, sampling_params(sampling), images)
        async with aclosing(self._shared.astream(prepared)) as chunks:
            async for chunk in chunks:
                yield chunk

    @overload
    def embed(self, text: str | Sequence[int], *, pooling: Pooling = ...) -> Tensor: ...

    @overload
    def embed(self, text: Sequence[str] | Sequence[Sequence[int]], *, pooling: Pooling = ...) -> Tensor: ...

    def embed(
        self, text: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], *, pooling: Pooling = "mean"
    ) -> Tensor:
        """Texts as vectors of length 1, fp32 [E], or [N, E] for a list: the model's last hidden states, pooled.

        A model that was not trained for it gives vectors of some use: texts that look alike come out near.

        Args:
            text: text or token ids, or a list of either.
            pooling: over all tokens ("mean"), or the last one's state, which has seen all others ("last").

        Raises:
            ContextLengthError: a text is longer than the context.
            CamelidError: another pooling.
        """
        if pooling not in ("mean", "last"):
            raise CamelidError(f"pooling is 'mean' or 'last', not {pooling!r}", where="pooling")
        import torch

        texts = cast("Sequence[Prompt]", text) if is_texts(text) else [cast("Prompt", text)]
        vectors: list[Tensor] = []
        for one in texts:
            with self._shared.lock:
                states_SE = self.engine.hidden_states(self.encode_prompt(one))
            vector_E = states_SE.mean(0) if pooling == "mean" else states_SE[-1]
            vectors.append(vector_E / vector_E.norm())
        if not is_texts(text):
            return vectors[0]
        return torch.stack(vectors) if vectors else torch.empty(0, self.model.config.hidden_size)

    def _prepare(
        self,
        prompt: Prompt,
        tools: Tools | None,
        params: SamplingParams,
        images: Sequence[ImageSource] | None = None,
    ) -> Prepared:
        # A reply in a conversation is a text of its own; what continues a text keeps the space that it starts with.
        continuing = isinstance(prompt, str) or not is_conversation(prompt)
        ids, places = self._encode(prompt, tools, len(images or ()))
        return Prepared(ids, params, continuing, self._read_images(_filled(places, images or ())))


def sampling_params(settings: Mapping[str, Any], base: SamplingParams | None = None) -> SamplingParams:
    """Sampling parameters from keywords.

    Raises:
        SamplingError: an unknown name, a value of the wrong type, or an impossible value.
    """
    known = {field.name for field in fields(SamplingParams)}
    for name in settings:
        if name not in known:
            raise SamplingError(f"unknown sampling setting '{name}'", hint=did_you_mean(name, known))
    try:
        return replace(base or SamplingParams(), **settings)
    except TypeError as error:
        raise SamplingError(f"a sampling setting has the wrong type: {error}") from error


def _known_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    from camelid.engine.engine import Engine

    known = set(signature(Engine).parameters) - {"model", "stop_ids", "vocabulary"}
    for name in options:
        if name not in known:
            raise EngineError(f"unknown engine option '{name}'", hint=did_you_mean(name, known))
    return options


def _filled(places: Sequence[object | None], given: Sequence[object]) -> list[object]:
    """What shows the images of a conversation, where some of its places are filled from beside it."""
    empty = sum(place is None for place in places)
    if empty != len(given):
        raise CamelidError(
            f"the conversation has {empty} places for images that are given beside it, and {len(given)} are",
            hint='a place is a content part {"type": "image"}',
        )
    rest = iter(given)
    return [next(rest) if place is None else place for place in places]
