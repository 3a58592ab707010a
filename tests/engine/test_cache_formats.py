"""The cache in 8 bits, and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_engine_model import TinyModel, new_tiny_model

from camelid.base.errors import EngineError, FormatError, NotFoundError
from camelid.engine.engine import Engine
from camelid.engine.kv_cache import QuantizedKVCache, QuantizedRows
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [7], [1, 2, 3, 4, 5, 6, 60], [60, 1]]
EACH = [SamplingParams(max_tokens=12, temperature=n / 2, seed=n) for n in range(4)]


def test_eight_bits_are_off_by_half_a_step_at_most() -> None:
    x = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 3, 50)[:, None, None]
    x[7] = 0
    rows = QuantizedRows(torch.empty(50, 3, 8, dtype=torch.int8), torch.empty(50, 3, 1))
    rows.write(torch.arange(50), x)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((rows[:] - x).abs() <= step * 0.5001).all()
    assert torch.equal(rows.index_select(0, torch.tensor([3, 7])), rows[torch.tensor([3, 7])])


def test_replies_in_eight_bits_are_the_same_in_any_company(tiny_model: TinyModel) -> None:
    alone = [
        Engine(tiny_model, cache_format="q8", block_size=4).generate([prompt], params)[0].token_ids
        for prompt, params in zip(PROMPTS, EACH, strict=True)
    ]
    for options in ({}, {"max_batch_tokens": 3}, {"cache_tokens": 32, "max_context": 30}):
        engine = Engine(tiny_model, cache_format="q8", block_size=4, **options)
        for _ in range(2):
            assert [c.token_ids for c in engine.generate(PROMPTS, EACH)] == alone


def test_eight_bits_take_a_quarter_of_fp32_and_the_scales(tiny_model: TinyModel) -> None:
    config = tiny_model.config
    exact = config.kv_elements_per_token * 4
    assert QuantizedKVCache.bytes_per_token(config, torch.float32) == exact / 4 + exact / config.head_dim
    with pytest.raises(EngineError, match="no cache format 'q9'"):
        Engine(tiny_model, cache_format="q9")


@pytest.mark.parametrize("cache_format", ["exact", "q8"])
def test_a_saved_cache_spares_another_engine_the_prompt(
    tiny_model: TinyModel, tmp_path: Path, cache_format: str
) -> None:
    first = Engine(tiny_model, block_size=4, cache_format=cache_format)
    expected = first.generate(PROMPTS, EACH)
    num_saved = first.save_cache(tmp_path / "cache.safetensors")

    log: list[StepStats] = []
    second = Engine(tiny_model, block_size=4, cache_format=cache_format, on_step=log.append)
    assert second.restore_cache(tmp_path / "cache.safetensors") == num_saved > 5
    assert second.restore_cache(tmp_path / "cache.safetensors") == 0
    assert second.generate(PROMPTS, EACH) == expected
    assert log[0].num_tokens == 1 + 1 + 3 + 2

    small = Engine(tiny_model, block_size=4, cache_format=cache_format, cache_tokens=16)
    assert small.restore_cache(tmp_path / "cache.safetensors") == 4


def test_a_cache_of_other_weights_or_another_kind_is_refused(own_model: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    engine = Engine(own_model, block_size=4)
    engine.generate(PROMPTS, EACH)
    engine.save_cache(path)
    with pytest.raises(FormatError, match="another model"):
        Engine(new_tiny_model(seed=1), block_size=4).restore_cache(path)
    with pytest.raises(FormatError, match="another block size"):
        Engine(own_model, block_size=8).restore_cache(path)
    with pytest.raises(FormatError, match="another layout"):
        Engine(own_model, block_size=4, cache_format="q8").restore_cache(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="no saved cache"):
        Engine(own_model, block_size=4).restore_cache(path)
    with pytest.raises(NotFoundError):
        engine.restore_cache(tmp_path / "none")


def test_an_empty_cache_can_be_saved(tiny_model: TinyModel, tmp_path: Path) -> None:
    assert Engine(tiny_model).save_cache(tmp_path / "cache.safetensors") == 0
    assert Engine(tiny_model).restore_cache(tmp_path / "cache.safetensors") == 0
