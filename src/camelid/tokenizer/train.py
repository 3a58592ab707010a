"""Training a byte-level BPE with Llama 3's pattern and control tokens.

tokenizer = train_tokenizer(["some text", "some more"], vocab_size=8192)
tokenizer.save(Path("my-tokenizer"))
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from camelid.base.errors import NotFoundError, TokenizerError
from camelid.base.progress import progress
from camelid.base.recipe import Recipe
from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET, BytePairModel, tokenizer_json
from camelid.tokenizer.hf_json import on_library, on_tiktoken
from camelid.tokenizer.split_patterns import LLAMA3

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import tokenizers

    from camelid.tokenizer.base import Tokenizer

SPECIAL_TOKENS: Final = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(7)),
)
"""Llama 3's control tokens; of the 246 reserved ones only seven, as each is a row of a small model's embedding."""

_BLOCK_LENGTH: Final = 1_000_000
"""Characters that are read from a file at once."""


class TokenizerRecipe(Recipe):
    """The settings of `camelid tokenizer train`."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """UTF-8 text files, as paths or glob patterns."""
    output: Path
    """The folder that gets tokenizer.json and tokenizer_config.json."""
    vocab_size: int = Field(default=32_768, gt=0, le=2**20)
    """Tokens in all: 256 bytes, merges and control tokens."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a pair must occur to be merged."""
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    """Control tokens; they get the last ids."""


def train_from_recipe(recipe: TokenizerRecipe) -> Path:
    """Train from files and save; the folder that was written.

    Raises:
        NotFoundError: an input matches no file.
        TokenizerError: a file is not UTF-8, or the settings allow no vocabulary.
    """
    files = _files(recipe.inputs)
    tokenizer = train_tokenizer(
        _texts(files),
        recipe.vocab_size,
        special_tokens=recipe.special_tokens,
        min_frequency=recipe.min_frequency,
    )
    if tokenizer.vocab_size < recipe.vocab_size:
        print(
            f"warning: the text gave only {tokenizer.vocab_size} of {recipe.vocab_size} tokens\n"
            "hint: more text, or a lower min_frequency, gives more",
            file=sys.stderr,
        )
    tokenizer.save(recipe.output)
    return recipe.output


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> Tokenizer:
    """Learn a byte-level BPE; the same texts always give the same vocabulary.

    Ids are laid out as Llama 3's: bytes, merges in the order they were learnt, control tokens. A text with too few
    different pairs gives a smaller vocabulary than asked for.

    Args:
        texts: the training text, in pieces of any size; no merge reaches over their ends.
        vocab_size: tokens in all, bytes and control tokens included.
        special_tokens: `<|begin_of_text|>`, `<|end_of_text|>` and `<|finetune_right_pad_id|>` among them get the roles
            that their names say.
        min_frequency: how often a pair must occur to be merged.

    Raises:
        TokenizerError: a control token comes twice, or `vocab_size` leaves no room for merges.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    if len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError("a control token comes twice", where="special_tokens")
    num_merged = vocab_size - len(special_tokens)
    if num_merged <= len(BYTE_ALPHABET):
        smallest = len(BYTE_ALPHABET) + len(special_tokens) + 1
        raise TokenizerError(
            f"a vocabulary of {vocab_size} has no room for merges",
            where="vocab_size",
            hint=f"256 bytes and {len(special_tokens)} control tokens are in every vocabulary: take {smallest} or more",
        )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_merged,
        min_frequency=min_frequency,
        initial_alphabet=list(BYTE_ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return _with_control_tokens(learner, special_tokens)


def _with_control_tokens(learner: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> Tokenizer:
    learned = json.loads(learner.to_str())["model"]
    ids = {name: len(learned["vocab"]) + i for i, name in enumerate(special_tokens)}
    special = SpecialTokens(
        ids=ids,
        bos=ids.get("<|begin_of_text|>"),
        eos=ids.get("<|end_of_text|>"),
        pad=ids.get("<|finetune_right_pad_id|>"),
        add_bos="<|begin_of_text|>" in ids,
    )
    model = BytePairModel(
        vocab=learned["vocab"],
        merges=[(left, right) for left, right in learned["merges"]],
        pattern=LLAMA3,
        added=[AddedToken(name, token_id, special=True) for name, token_id in ids.items()],
    )
    text = tokenizer_json(model, special)
    return on_tiktoken(model, special, lambda: text) or on_library(text, special, "the trained vocabulary")


def _files(inputs: Sequence[str]) -> list[Path]:
    """Every file that the patterns match, each once, in an order that does not depend on the file system."""
    found: dict[Path, None] = {}
    for pattern in inputs:
        path = Path(pattern).expanduser()
        below = Path(path.anchor)
        matches = [path] if path.exists() else sorted(below.glob(str(path.relative_to(below))))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise NotFoundError(f"no file matches '{pattern}'", where="inputs")
        found |= dict.fromkeys(files)
    return list(found)


def _texts(files: Sequence[Path]) -> Iterator[str]:
    """The files' text in blocks that end with a line."""
    with progress("reading text", total=sum(path.stat().st_size for path in files)) as bar:
        for path in files:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    while lines := file.readlines(_BLOCK_LENGTH):
                        block = "".join(lines)
                        bar.advance(len(block.encode()))
                        yield block
            except UnicodeDecodeError as error:
                raise TokenizerError(f"this text is not UTF-8: {error.reason}", where=path) from error
