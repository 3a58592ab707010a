"""The tokenizer of whatever a path leads to: a vocabulary by itself, or a model of any format."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from camelid.base.errors import FormatError, NotFoundError, TokenizerError
from camelid.checkpoint.load import open_checkpoint
from camelid.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.tokenizer import Tokenizer


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer in a file or folder, or the one that came with the model there.

    Raises:
        TokenizerError: there is none, or it is broken.
        NotFoundError: nothing is there.
    """
    try:
        return load_tokenizer(path)
    except (NotFoundError, TokenizerError) as error:
        try:
            checkpoint = open_checkpoint(path)
        except (FormatError, NotFoundError):
            raise error from None  # it is no model either
    with closing(checkpoint):
        return checkpoint.load_tokenizer()
