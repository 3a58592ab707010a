"""A tokenizer as the `tokenizer.ggml.*` keys of a GGUF file; `gguf_vocab` reads them back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from camelid.base.errors import TokenizerError
from camelid.tokenizer.gguf_pre import GGUF_PRE
from camelid.tokenizer.merge_proof import rank_order
from camelid.tokenizer.spm_model import BPE, PieceType

if TYPE_CHECKING:
    from camelid.tokenizer.base import Tokenizer
    from camelid.tokenizer.byte_pairs import BytePairModel
    from camelid.tokenizer.spm_model import SentencePieceModel

PRE_NAMES: Final = {(pre.cuts, pre.ignore_merges): name for name, pre in reversed(list(GGUF_PRE.items()))}
"""How a text is cut, and whether a whole cut that is a token is taken at once → `tokenizer.ggml.pre`."""

_NONE: Final = 2**32 - 1
"""-1 in the file's unsigned type: SentencePiece readers assume Llama's ids where a key is missing.

Not so for padding, of which they assume none; transformers takes the number for an id, and its model fails to open.
"""

_PADDING_SCORE: Final = -1000.0
"""Lower than that of any piece of a trained vocabulary, so that nothing is merged into a padding piece first."""


def gguf_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys of a GGUF file's vocabulary, but for the chat template and the ends of replies.

    Ids that the model has and the tokenizer has not become unused tokens `[PAD<id>]`, as llama.cpp's converter names
    them.

    Args:
        tokenizer: a byte-level BPE whose way to cut a text has a name in GGUF, or a SentencePiece BPE.
        vocab_size: of the model's embedding.

    Returns:
        Texts, booleans, whole numbers, lists of texts, and numpy arrays.

    Raises:
        TokenizerError: the tokenizer does something that a GGUF file has no word for, or has more ids than the model.
    """
    from camelid.tokenizer.library import LibraryTokenizer
    from camelid.tokenizer.spm import SentencePieceTokenizer
    from camelid.tokenizer.tiktoken_bpe import TiktokenBPE

    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {vocab_size}",
            hint="these two do not belong together",
        )
    if isinstance(tokenizer, SentencePieceTokenizer):
        keys = _sentencepiece(tokenizer.model, vocab_size)
    elif isinstance(tokenizer, TiktokenBPE | LibraryTokenizer):
        keys = _byte_pairs(tokenizer.definition, tokenizer, vocab_size)
    else:
        raise TokenizerError(f"a {type(tokenizer).__name__} cannot be written into a GGUF file")
    keys |= {"add_bos_token": tokenizer.special.add_bos, "add_eos_token": False}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _byte_pairs(definition: str, tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    from camelid.tokenizer.hf_json import byte_pair_model

    model = byte_pair_model(definition)
    if model is None:
        raise TokenizerError(
            "this tokenizer.json does more than GGUF's byte-level BPE can say",
            hint="put the tokenizer.model that it was made from beside it, if there is one",
        )
    tokens, types = _padding_tokens(vocab_size)
    for token, token_id in model.vocab.items():
        tokens[token_id], types[token_id] = token, PieceType.NORMAL
    for added in model.added:
        kind = PieceType.CONTROL if added.special else PieceType.USER_DEFINED
        tokens[added.id], types[added.id] = added.content, kind
    for text, token_id in tokenizer.special.ids.items():
        tokens[token_id], types[token_id] = text, PieceType.CONTROL
    return {
        "model": "gpt2",
        "pre": _pre_name(model),
        "tokens": tokens,
        "token_type": np.array(types, dtype=np.int32),
        "merges": [f"{left} {right}" for left, right in model.merges],
    }


def _pre_name(model: BytePairModel) -> str:
    """The name whose readers give the same ids as this model."""
    if name := PRE_NAMES.get((model.cuts, model.ignore_merges)):
        return name
    twin = replace(model, ignore_merges=not model.ignore_merges)
    name = PRE_NAMES.get((twin.cuts, twin.ignore_merges))
    if name is not None and (order := rank_order(model)) is not None and order == rank_order(twin):
        return name  # both merge by the same ranks, so they agree on every text
    raise TokenizerError(
        "GGUF has no name for the way in which this tokenizer cuts texts",
        hint="it has names for the cuts of " + ", ".join(sorted(PRE_NAMES.values())),
    )


def _sentencepiece(model: SentencePieceModel, vocab_size: int) -> dict[str, Any]:
    for holds, what in (
        (model.model_type != BPE, "it is no BPE but a unigram model"),
        (bool(model.character_map), "it rewrites characters before it cuts a text"),
        (model.treat_whitespace_as_suffix, "it puts spaces behind words"),
        (not model.escape_whitespaces, "it leaves spaces as they are"),
        (not model.byte_fallback, "it has no byte pieces"),
    ):
        if holds:
            raise TokenizerError(f"this SentencePiece vocabulary cannot be written into a GGUF file: {what}")
    tokens, types = _padding_tokens(vocab_size)
    scores = np.full(vocab_size, _PADDING_SCORE, dtype=np.float32)
    for token_id, piece in enumerate(model.pieces):
        tokens[token_id], types[token_id], scores[token_id] = piece.text, piece.type, piece.score
    ids = {"bos": model.bos_id, "eos": model.eos_id, "unknown": model.unk_id}
    ids |= {"padding": model.pad_id} if 0 <= model.pad_id < vocab_size else {}
    keys: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": np.array(types, dtype=np.int32),
        "add_space_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
    }
    return keys | {f"{role}_token_id": i if 0 <= i < vocab_size else _NONE for role, i in ids.items()}


def _padding_tokens(vocab_size: int) -> tuple[list[str], list[int]]:
    return [f"[PAD{i}]" for i in range(vocab_size)], [int(PieceType.UNUSED)] * vocab_size
