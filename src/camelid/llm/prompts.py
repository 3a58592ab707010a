"""What a prompt can be: text, token ids or messages; one of them or a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, TypeAlias, TypeGuard

from camelid.base.errors import CamelidError

Message: TypeAlias = Mapping[str, Any]
"""One message of OpenAI's schema: role, content, and what else the role has."""

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text to continue, token ids to continue, or a conversation to answer."""


def is_conversation(prompt: object) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def token_ids_of(prompt: object) -> list[int]:
    """The ids of a prompt that is token ids.

    Raises:
        CamelidError: it is something else.
    """
    ids = _checked(prompt)
    try:
        return [index(token_id) for token_id in ids]
    except TypeError as error:
        kinds = ", ".join(sorted({type(item).__name__ for item in ids}))
        raise CamelidError(
            f"a prompt is text, token ids or messages, not a {type(prompt).__name__} of {kinds}",
            hint="ids are integers; only `generate` takes a list of prompts",
        ) from error


def is_batch(prompt: object) -> bool:
    """Whether this is a list of prompts."""
    if isinstance(prompt, str):
        return False
    prompts = _checked(prompt)
    return len(prompts) == 0 or isinstance(prompts[0], Sequence)


def is_texts(text: object) -> bool:
    """Whether this is a list of texts or of token ids, not one of them."""
    return not isinstance(text, str) and (len(items := _checked(text)) == 0 or isinstance(items[0], str | Sequence))


def _checked(prompt: object) -> Sequence[Any]:
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        raise CamelidError(
            f"a prompt is text, token ids or messages, not {type(prompt).__name__}",
            hint='for a tensor, pass ids.tolist(); for a message, pass [{"role": "user", "content": "…"}]',
        )
    return prompt
