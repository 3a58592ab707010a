"""The smallest tokenizer: bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from camelid.tokenizer.base import SpecialTokens, Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes; three control tokens follow."""

    special = SpecialTokens(
        ids={"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}, bos=256, eos=256, add_bos=True
    )
    vocab_size = 259

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        return [*([256] if bos else []), *text.encode("utf-8", "replace"), *([256] if eos else [])]

    def token_bytes(self, token_id: int) -> bytes:
        names = {i: name for name, i in self.special.ids.items()}
        return names[token_id].encode() if token_id in names else bytes([token_id])

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        kept = [i for i in ids if not (skip_special and i > 255)]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        raise AssertionError("no test saves it")
