"""llama.cpp in this process, for the scripts and tests that compare with it.

It comes with the package llama-cpp-python, built from its source distribution, which takes 15 to 20 minutes on two
cores: `pip install --no-binary :all: llama-cpp-python==0.3.36`. Where llama.cpp lies elsewhere, LLAMA_CPP_LIB_PATH
names the folder of its shared libraries.

Shape suffixes: S tokens, V vocabulary, R rows, N columns, B bytes of a row.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import torch

from camelid.base.gguf_header import GGML_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

F32, F16 = 0, 1
"""ggml's numbers of the types that a cache may have."""


class LlamaCpp:
    """A GGUF file opened by llama.cpp on the CPU.

    Args:
        path: of the file.
        context: tokens that fit.
        cache: type of the keys and values, `F32` or `F16`, which is llama.cpp's own choice.
        vocabulary_only: leave the weights alone.
    """

    def __init__(self, path: Path, *, context: int = 640, cache: int = F32, vocabulary_only: bool = False) -> None:
        self._llama: Any = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            logits_all=True,
            flash_attn=False,
            type_k=cache,
            type_v=cache,
            vocab_only=vocabulary_only,
            verbose=False,
        )

    def encode(self, text: str, *, bos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids as llama.cpp's tokenizer gives them."""
        ids: list[int] = self._llama.tokenize(text.encode(), add_bos=bos, special=allow_special)
        return ids

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """The likeliest tokens, one after the other, past any end."""
        self._llama.reset()
        self._llama.eval(ids)
        out: list[int] = []
        while True:
            out.append(int(np.argmax(self._llama.scores[self._llama.n_tokens - 1])))
            if len(out) == num_tokens:
                return out
            self._llama.eval(out[-1:])

    def logits(self, ids: Sequence[int]) -> Tensor:
        """fp32 [S, V], row s after ids[: s + 1]."""
        self._llama.reset()
        self._llama.eval(ids)
        return torch.from_numpy(self._llama.scores[: len(ids)].copy())

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template."""
        text = llama_cpp.llama_model_chat_template(self._llama.model, None)
        return None if text is None else text.decode()

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation by libllama's own renderer, which knows a few templates by their marks, ChatML among them."""
        chat = (llama_cpp.llama_chat_message * len(messages))(
            *(llama_cpp.llama_chat_message(one["role"].encode(), one["content"].encode()) for one in messages)
        )
        out = ctypes.create_string_buffer(65536)
        template = (self.chat_template or "").encode()
        size = llama_cpp.llama_chat_apply_template(template, chat, len(messages), True, out, len(out))
        if not 0 <= size <= len(out):
            raise RuntimeError("libllama does not know this template")
        return out.raw[:size].decode()

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()


def quantize(source: Path, target: Path, file_type: int) -> None:
    """What `llama-quantize source target` does for a `general.file_type`."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = torch.get_num_threads()
    if status := llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp could not quantise {source}: {status}")


def pack(weight_RN: Tensor, format: str) -> Tensor:
    """ggml's encoding of an fp32 matrix, uint8 [R, B]."""
    number, kind = next((i, kind) for i, kind in GGML_TYPES.items() if kind.name.lower() == format)
    rows, columns = weight_RN.shape
    source = weight_RN.contiguous()
    out_RB = torch.empty(rows, columns // kind.block_size * kind.block_bytes, dtype=torch.uint8)
    written = _ggml().ggml_quantize_chunk(
        number, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(out_RB.data_ptr()), 0, rows, columns, None
    )
    assert written == out_RB.numel()
    return out_RB


@functools.cache
def _ggml() -> ctypes.CDLL:
    default = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(Path(os.environ.get("LLAMA_CPP_LIB_PATH", default)) / "libggml-base.so"))
    size = ctypes.c_int64
    numbers = [size, size, size]
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *numbers, ctypes.c_void_p]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library
