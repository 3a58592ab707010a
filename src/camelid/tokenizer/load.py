"""`load_tokenizer`: opens a vocabulary of any format, recognised by what is in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from camelid.base.errors import NotFoundError, TokenizerError
from camelid.tokenizer.huggingface import read_json

if TYPE_CHECKING:
    from camelid.tokenizer.base import Tokenizer

_TIKTOKEN_LINE: Final = re.compile(rb"\s*[A-Za-z0-9+/]+={0,2} \d+\s*(\n|$)")
_IN_A_FOLDER: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")

MAX_BYTES = 100_000_000
"""The largest `tokenizer.json` of a released Llama has 28 MB."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open a vocabulary.

    tokenizer = load_tokenizer("Llama-3.2-1B-Instruct")
    tokenizer.encode("Hello world") == [9906, 1917]

    Args:
        path: a tokenizer.json, a SentencePiece or tiktoken tokenizer.model, a vocab.json with its merges.txt as GPT-2
            and OPT have them, a GGUF file, or a folder that holds one.
            In a folder tokenizer.json comes first, as in transformers.

    Raises:
        NotFoundError: there is no such path, or no vocabulary in the folder.
        TokenizerError: the file is no vocabulary, or a broken one.
        FormatError: the GGUF file is broken.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise NotFoundError("there is no such tokenizer file or folder", where=path)
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            return _load_gguf(path)
    if path.stat().st_size > MAX_BYTES:
        raise TokenizerError(f"no vocabulary has {path.stat().st_size} bytes", where=path)
    data = path.read_bytes()
    if data.lstrip()[:1] in (b"{", b"["):
        from camelid.tokenizer.hf_json import load_tokenizer_json

        return load_tokenizer_json(data, path)
    if _TIKTOKEN_LINE.match(data):
        from camelid.tokenizer.meta import load_tiktoken_model

        return load_tiktoken_model(data, path, original_llama3=_is_original_llama3(path.parent))
    if data[:1] == b"\x0a":
        return _load_sentencepiece(data, path)
    raise TokenizerError(
        "this is no vocabulary that camelid knows" if data else "this file is empty",
        where=path,
        hint="this looks like a web page or a Git LFS pointer: download the file itself"
        if data.startswith((b"version https://git-lfs", b"<"))
        else "a tokenizer.json, a SentencePiece or tiktoken tokenizer.model, and a GGUF file can be read",
    )


def _file_in(folder: Path) -> Path:
    for name in _IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1:
        return gguf[0]
    if gguf:
        names = ", ".join(path.name for path in gguf)
        raise TokenizerError(f"the folder holds {len(gguf)} GGUF files", where=folder, hint=f"name one of {names}")
    raise NotFoundError(
        "there is no vocabulary in this folder", where=folder, hint=f"looked for {', '.join(_IN_A_FOLDER)} and *.gguf"
    )


def _load_gguf(path: Path) -> Tokenizer:
    from camelid.base.gguf_header import read_gguf_header
    from camelid.tokenizer.gguf_vocab import from_gguf_metadata

    return from_gguf_metadata(read_gguf_header(path).metadata, where=path)


def _load_sentencepiece(data: bytes, path: Path) -> Tokenizer:
    from camelid.tokenizer.spm import load_sentencepiece

    add_bos = read_json(path.parent / "tokenizer_config.json").get("add_bos_token")
    tokenizer = load_sentencepiece(data, path, add_bos=add_bos if isinstance(add_bos, bool) else None)
    added = read_json(path.parent / "added_tokens.json")
    ids = range(tokenizer.vocab_size)
    beyond = [name for name, token_id in added.items() if token_id not in ids]
    if beyond:
        raise TokenizerError(
            f"added_tokens.json adds {', '.join(map(repr, beyond[:3]))}, which this file does not hold",
            where=path,
            hint="save the tokenizer as tokenizer.json with transformers, which puts them together",
        )
    return tokenizer


def _is_original_llama3(folder: Path) -> bool:
    """Whether the params.json beside the vocabulary is that of Llama 3, which scales no rotary frequencies."""
    params = read_json(folder / "params.json")
    return bool(params) and not params.get("use_scaled_rope", False)
