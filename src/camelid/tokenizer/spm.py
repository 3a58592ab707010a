"""SentencePiece vocabularies: LLaMA 1, Llama 2, Code Llama, and GGUF files of their kind."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import sentencepiece

from camelid.base.errors import TokenizerError
from camelid.tokenizer.added_tokens import AddedToken, AddedTokens
from camelid.tokenizer.base import SpecialTokens, Tokenizer, scalar_text
from camelid.tokenizer.huggingface import save_files
from camelid.tokenizer.spm_model import BPE, Piece, PieceType, SentencePieceModel, parse, serialize

if TYPE_CHECKING:
    from pathlib import Path

SPACE: Final = "▁"
"""U+2581, which stands for a space; a text's own U+2581 therefore comes back as a space."""

MERGED: Final = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
STRETCH: Final = 4096
"""Characters after which a long text is cut at the next word: the library takes longer than linear time."""

WORD: Final = re.compile(f"(?<=[^ {SPACE}]) (?=[^ {SPACE}])")
"""A single space between two words."""

INFILL: Final = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
"""Code Llama's control pieces for filling in the middle."""


def load_sentencepiece(data: bytes, path: Path, *, add_bos: bool | None = None) -> SentencePieceTokenizer:
    """The tokenizer of a SentencePiece tokenizer.model.

    Args:
        data: the file's content.
        path: names it in errors.
        add_bos: whether a prompt starts with the begin token; None: if there is one.

    Raises:
        TokenizerError: the content is no SentencePiece model.
    """
    return SentencePieceTokenizer(parse(data, path), add_bos=add_bos, where=path, data=data)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary on the `sentencepiece` library.

    A text is encoded as if it had a space before it, if the vocabulary says so, and each stretch between control
    tokens too; decoding drops that space at the start of the text only, as the library does.

    Args:
        model: the vocabulary.
        add_bos: whether a prompt starts with the begin token; None: if there is one.
        where: names the vocabulary in errors.
        data: the file that `model` was read from, kept for `save`.

    Raises:
        TokenizerError: the library refuses the vocabulary.
    """

    def __init__(
        self, model: SentencePieceModel, *, add_bos: bool | None = None, where: object, data: bytes | None = None
    ) -> None:
        infill = [i for i, piece in enumerate(model.pieces) if piece.text in INFILL]
        if any(model.pieces[i].type != PieceType.CONTROL for i in infill):
            model = _with_control(model, infill)
            data = None
        self._model = model
        self._data = data or serialize(model)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._data)
        except RuntimeError as error:
            raise TokenizerError(f"sentencepiece refuses this vocabulary: {error}", where=where) from error
        control = {
            piece.text: i
            for i, piece in enumerate(model.pieces)
            if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)
        }
        bos, eos, pad = (i if 0 <= i < len(model.pieces) else None for i in (model.bos_id, model.eos_id, model.pad_id))
        adds_bos = bos is not None and add_bos is not False
        self.special = SpecialTokens(ids=control, bos=bos, eos=eos, pad=pad, unk=model.unk_id, add_bos=adds_bos)
        self._added = AddedTokens([AddedToken(text, i, special=True) for text, i in control.items()])
        self._bytes = list(map(_piece_bytes, model.pieces))
        self._can_cut = _words_are_apart(model)
        if model.add_dummy_prefix or model.remove_extra_whitespaces:
            self.dummy_space_ids = frozenset(
                i
                for i, piece in enumerate(model.pieces)
                if piece.text.startswith(SPACE) and piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
            )

    @property
    def model(self) -> SentencePieceModel:
        """The vocabulary, and how it treats spaces."""
        return self._model

    @property
    def file(self) -> bytes:
        """The content of a `tokenizer.model`: the one it was read from, where that says the same."""
        return self._data

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self._bytes)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids; control pieces come only from `bos`, `eos` and `allow_special`."""
        text = scalar_text(text)
        if not allow_special:
            return self.framed(self._encode(text), bos=bos, eos=eos)
        ids: list[int] = []
        for part in self._added.split(text, allow_special=True):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode(part)
        return self.framed(ids, bos=bos, eos=eos)

    def _encode(self, text: str) -> list[int]:
        """A text without control pieces; a long one in stretches, which start with the library's own space."""
        ids: list[int] = []
        start = 0
        while self._can_cut and (space := WORD.search(text, start + STRETCH)):
            ids += self._processor.encode(text[start : space.start()])
            start = space.end()
        ids += self._processor.encode(text[start:])
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """A piece with its U+2581 as spaces, or the byte of a byte piece."""
        if not 0 <= token_id < len(self._bytes):
            raise TokenizerError(f"there is no token {token_id} in this vocabulary of {self.vocab_size}")
        return self._bytes[token_id]

    def save(self, folder: Path) -> None:
        """Write tokenizer.model, tokenizer_config.json, and tokenizer.json if an exactly equal one exists."""
        from camelid.tokenizer.spm_json import sentencepiece_json

        files = {"tokenizer.model": self._data}
        text = sentencepiece_json(self._model, self.special)
        if text is not None:
            files["tokenizer.json"] = text.encode()
        save_files(folder, self.special, files)


def _words_are_apart(model: SentencePieceModel) -> bool:
    """Whether the text before a word and the word with its space are encoded as if each stood alone.

    Byte pairs merge into pieces of the vocabulary only. If none has a space inside, behind another character, no merge
    crosses the place before a word's space, and the space is the one that the library puts before a text.
    """
    as_written = model.add_dummy_prefix and not model.remove_extra_whitespaces and model.escape_whitespaces
    return (
        as_written
        and model.model_type == BPE
        and not model.treat_whitespace_as_suffix
        and not model.character_map
        and not any(SPACE in piece.text.lstrip(SPACE) for piece in model.pieces if piece.type in MERGED)
    )


def _with_control(model: SentencePieceModel, ids: list[int]) -> SentencePieceModel:
    pieces = list(model.pieces)
    for i in ids:
        pieces[i] = replace(pieces[i], type=PieceType.CONTROL)
    return replace(model, pieces=tuple(pieces))


def _piece_bytes(piece: Piece) -> bytes:
    if piece.type == PieceType.BYTE:
        return bytes([int(piece.text[3:5], 16)])
    if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN):
        return piece.text.encode()
    return piece.text.replace(SPACE, " ").encode()
