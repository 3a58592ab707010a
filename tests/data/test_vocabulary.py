from __future__ import annotations

from pathlib import Path

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import TokenizerError
from camelid.data.vocabulary import Vocabulary
from camelid.tokenizer import load_tokenizer
from camelid.tokenizer.base import SpecialTokens

LLAMA2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"


class WithPadding(ByteTokenizer):
    special = SpecialTokens(ids={**ByteTokenizer.special.ids, "<pad>": 259}, bos=256, eos=256, pad=259)
    vocab_size = 260


class WithHole(ByteTokenizer):
    vocab_size = 260

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == 259:
            raise TokenizerError("unused")
        return super().token_bytes(token_id)


def test_control_tokens_and_unused_ids_have_no_bytes_of_text() -> None:
    assert Vocabulary.of(WithHole()).num_bytes_V.tolist() == [1] * 256 + [0] * 4


def test_a_first_token_loses_sentencepieces_space() -> None:
    tokenizer = load_tokenizer(LLAMA2)
    vocabulary = Vocabulary.of(tokenizer)

    first, second = tokenizer.encode("llama llama")[0], tokenizer.encode("a 7")[1]

    assert tokenizer.token_bytes(first).startswith(b" ")
    assert vocabulary.num_bytes_V[first] - vocabulary.num_first_bytes_V[first] == 1
    assert vocabulary.num_bytes_V[tokenizer.encode("x1")[-1]] == 1
    assert vocabulary.num_bytes_V[second] == vocabulary.num_first_bytes_V[second] + 1


def test_padding_is_the_padding_token_or_else_the_end() -> None:
    assert Vocabulary.of(WithPadding()).padding_id == 259
    assert Vocabulary.of(ByteTokenizer()).padding_id == 256


def test_the_fingerprint_tells_vocabularies_apart() -> None:
    fingerprints = {Vocabulary.of(t).fingerprint for t in (ByteTokenizer(), WithPadding(), WithHole())}

    assert len(fingerprints) == 3
    assert Vocabulary.of(ByteTokenizer()).fingerprint in fingerprints
