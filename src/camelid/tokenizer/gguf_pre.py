"""How a GGUF file's byte-level BPE cuts texts: what each `tokenizer.ggml.pre` stands for.

The names, and what follows from them, are llama.cpp's (src/llama-vocab.cpp, as vendored in llama-cpp-python 0.3.36);
`scripts/pre_tokenizer_vectors.py` compares ids under every name. Its own engine lacks some of what an expression may
say, so for "llama4", "gpt-4o" and "tekken" it has another one that means the same except for capitals outside of ASCII:
there the vocabulary's own expression stands here.

Names that are missing are refused, never guessed: "default", which converters write for what they do not know;
"gemma4", "sarvam-moe", "whitespace", which are no byte-level BPE; "roberta-bpe", "jina-v1-en", "jina-v2-code", which
frame every text; "kimi-k2", "afmoe", "superbpe", "granite-embed-multi-97m", whose cut no expression here says;
"tiny_aya", "cohere2moe", where llama.cpp cuts numbers before Chinese characters otherwise than their tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from camelid.tokenizer.split_patterns import (
    BAILING,
    BLANKS_BY_POWERS,
    GPT2,
    GPT2_DIGITS,
    LLAMA3,
    LLAMA4,
    PHRASES,
    QWEN2,
    QWEN2_MARKS,
    SEED_CODER,
    TEKKEN,
    WITHOUT_CONTRACTIONS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camelid.tokenizer.split_patterns import Cuts


@dataclass(frozen=True)
class Pre:
    """What one name says."""

    cuts: Cuts
    ignore_merges: bool = False
    """A whole cut that is a token is taken at once."""
    add_bos: bool = False
    """Texts start with the begin-of-sequence token if the file does not say."""


_DIGITS_BY_THREE: Final = r"\p{N}{1,3}"
_HAN_AND_KANA: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_PUNCTUATED_WORDS: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_WORDS_OF_BLOOM: Final = r" ?[^(\s|.,!?" "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_CASED_LETTERS: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Letters of scripts that have capitals, as DeepSeek's tokenizer.json lists them."""

_DEEPSEEK_LLM: Final[Cuts] = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~" "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_AND_HANGUL,
    r"\p{N}+",
)
_DEEPSEEK_CODER: Final[Cuts] = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")
_DEEPSEEK_V3: Final[Cuts] = (
    _DIGITS_BY_THREE,
    _HAN_AND_KANA,
    _PUNCTUATED_WORDS + r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SPARK: Final[Cuts] = (_DIGITS_BY_THREE, _HAN_AND_KANA, _PUNCTUATED_WORDS + r"|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")
_YOUTU: Final[Cuts] = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_HAN_AND_KANA}",
    LLAMA4.replace(r"\p{N}{1,3}", r"\p{N}"),
)
_FALCON: Final[Cuts] = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
_CHAMELEON: Final[Cuts] = (
    r"<sentinel:[0-9]+>",
    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2,
)
_MINICPM5: Final[Cuts] = (_DIGITS_BY_THREE, LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+"))
_LAGUNA: Final[Cuts] = (r"[^\n]+|[\n]+", QWEN2)

_LLAMA3: Final = Pre((LLAMA3,), ignore_merges=True, add_bos=True)

GGUF_PRE: Final[Mapping[str, Pre]] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling", "gigachat", "a.x-4.0"),
        Pre((GPT2,)),
    ),
    **dict.fromkeys(("mellum", "modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"), Pre((GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        Pre((GPT2_DIGITS,)),
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), _LLAMA3),
    **dict.fromkeys(("midm-2.0", "lfm2", "jina-v5-nano"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Pre((LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), replace(_LLAMA3, add_bos=False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2"), Pre((QWEN2,))),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), Pre((QWEN2,))),
    "qwen35": Pre((QWEN2_MARKS,)),
    # Meta's own code takes whole tokens at once. llama.cpp does not, which changes nothing: merges reach all of them.
    "llama4": Pre((LLAMA4,), ignore_merges=True),
    **dict.fromkeys(("gpt-4o", "kanana2", "talkie", "minimax-m2"), Pre((LLAMA4,))),
    "tekken": Pre((TEKKEN,), ignore_merges=True, add_bos=True),
    "jais-2": Pre((BLANKS_BY_POWERS,)),
    "seed-coder": Pre((SEED_CODER,)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), Pre((BAILING,))),
    "ufakzeka": Pre((WITHOUT_CONTRACTIONS,)),
    "exaone-moe": Pre((PHRASES,)),
    "deepseek-llm": Pre(_DEEPSEEK_LLM),
    "deepseek-coder": Pre(_DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), Pre(_DEEPSEEK_V3)),
    "spark2_5": Pre(_SPARK),
    "youtu": Pre(_YOUTU, ignore_merges=True),
    "falcon": Pre(_FALCON),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Pre((_WORDS_OF_BLOOM,))),
    "viking": Pre((_WORDS_OF_BLOOM, r"\p{N}")),
    "chameleon": Pre(_CHAMELEON, add_bos=True),
    "minicpm5": Pre(_MINICPM5, ignore_merges=True),
    "laguna": Pre(_LAGUNA),
}
"""`tokenizer.ggml.pre` → what it says; of names that say the same, the first is the one that is written."""
