"""Attention to blocks where they lie, by the Triton kernels in Triton's interpreter: the same as to a gathered copy."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from camelid.kernels.paged_cuda import paged_attention_on

CHECK = """
import math
import torch
from camelid.engine.decode_step import DecodeContext
from camelid.engine.engine import Engine
from camelid.engine.kv_cache import PagedKVCache
from camelid.engine.params import SamplingParams
from camelid.kernels import paged_triton
from camelid.model.attention import Chunks, Window
from camelid.model.llama import Llama, LlamaConfig
from tiny_engine_model import TinyConfig

torch.manual_seed(0)
cached_lens = [90, 0, 15, 33, 300]
tables = [[0, 9, 2, 3, 4, 5], [7], [8], [11, 10, 1], list(range(12, 31))]
padded = torch.tensor([table + [6] * (24 - len(table)) for table in tables])
positions = torch.tensor(cached_lens)
kinds = [((9, 3), 64, 256), ((4, 4), 80, 10), ((16, 1), 8, 40), ((40, 2), 128, 40)]
for heads, head_dim, paged_triton.PROGRAMS in kinds:
    config = TinyConfig(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=head_dim)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 4e-3)):
        q, k, v = (torch.randn(5, n, head_dim).to(dtype) for n in (heads[0], heads[1], heads[1]))
        cache = PagedKVCache(config, 31, 16, device=torch.device("cpu"), dtype=dtype)
        for _, tensor in cache.tensors():
            tensor.normal_()
            tensor.view(31, 16, *tensor.shape[1:])[6] = math.nan  # of no sequence
            tensor[7 * 16 + 1 : 8 * 16] = math.nan  # not written yet
        for reach in (None, Window(20), Chunks(64)):
            contexts = [
                DecodeContext(cache, positions, padded, kernel) for kernel in (None, paged_triton.paged_attention)
            ]
            theirs, ours = (context.attend(1, q, k, v, scale=0.2, reach=reach) for context in contexts)
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)

shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
model = Llama.from_config(LlamaConfig(**shape, **heads, initializer_range=0.2))
model.initialize(seed=0)
prompts = [[7, 1, 5], [9] * 40, list(range(60))]
each = [SamplingParams(max_tokens=9 - 3 * n) for n in range(3)]
expected = [reply.token_ids for reply in Engine(model).generate(prompts, each)]
engine = Engine(model, decode_graphs=True)
engine._runner.decode_step._attention = paged_triton.paged_attention
assert [reply.token_ids for reply in engine.generate(prompts, each)] == expected
print("checked")
"""


@pytest.mark.slow  # the interpreter takes half a minute
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which comes with torch for CUDA")
def test_blocks_are_read_where_they_lie() -> None:
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    code = f"import sys; sys.path[:0] = {paths!r}\n{CHECK}"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "checked\n", run.stderr


def test_the_twin_does_the_work_on_a_cpu_and_for_what_the_kernels_do_not_take() -> None:
    assert paged_attention_on(torch.device("cpu"), torch.float32, 64) is None
    assert paged_attention_on(torch.device("cuda"), torch.float64, 64) is None
    assert paged_attention_on(torch.device("cuda"), torch.bfloat16, 512) is None
