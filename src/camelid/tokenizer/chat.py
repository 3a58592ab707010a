"""Chat formats: from messages to token ids and the loss mask, the same for training, rollout, evaluation and serving.

chat = chat_format_for(tokenizer, template=folder_template)
prompt = chat.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True).ids
example = chat.render([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}])
example.ids, example.mask
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.errors import ChatFormatError
from camelid.base.registry import Registry
from camelid.tokenizer.chat_jinja import JinjaFormat

if TYPE_CHECKING:
    from camelid.tokenizer.base import Tokenizer
    from camelid.tokenizer.chat_format import ChatFormat, NativeFormat

CHAT_FORMATS: Registry[type[NativeFormat]] = Registry(
    "chat format",
    "camelid.chat_formats",
    {
        "llama2": "camelid.tokenizer.chat_llama2:Llama2Format",
        "llama3": "camelid.tokenizer.chat_llama3:Llama3Format",
        "chatml": "camelid.tokenizer.chat_chatml:ChatMLFormat",
    },
)


def chat_format_for(tokenizer: Tokenizer, *, template: str | None, name: str | None = None) -> ChatFormat:
    """The chat format of a model.

    A format that is asked for by name comes first, then the folder's own template. A model with neither is told by its
    vocabulary: one that has all control tokens of a format was made for it.

    Args:
        tokenizer: the model's tokenizer.
        template: the Jinja template that came with it, if any.
        name: one of `CHAT_FORMATS`.

    Raises:
        NotFoundError: no format has this name.
        ChatFormatError: nothing tells the model's format, or its vocabulary lacks a control token of the named one.
    """
    if name is not None:
        return CHAT_FORMATS.load(name)(tokenizer)
    natives = [CHAT_FORMATS.load(known) for known in CHAT_FORMATS.names()]
    if template is not None:
        for native in natives:
            if native.template == template and native.marks <= tokenizer.special.ids.keys():
                return native(tokenizer)
        return JinjaFormat(tokenizer, template)
    for native in natives:
        if native.marks and native.marks <= tokenizer.special.ids.keys():
            return native(tokenizer)
    raise ChatFormatError(
        "the model came without a chat format",
        hint="it may be a base model, which completes text; if not, name its format (--chat-format, chat_format=): "
        + ", ".join(CHAT_FORMATS.names()),
    )
