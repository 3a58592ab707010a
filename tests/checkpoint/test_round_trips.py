"""Every family through every format that has it, in every dtype: the same weights and the same config at the end."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from tiny_llama4 import LLAMA_4
from tiny_mllama import MLLAMA, tiny_mllama

from camelid.base.errors import ConfigError
from camelid.checkpoint import convert, open_checkpoint, save_huggingface
from camelid.checkpoint.conversion import TARGETS
from camelid.codecs.packed import PackedTensor
from camelid.model import ARCHITECTURES
from camelid.model.base import LanguageModel
from camelid.model.config import ModelConfig
from camelid.model.mllama_config import MllamaConfig
from camelid.model.opt_config import OPTConfig
from camelid.model.rope import Llama3Rope, RopeParameters

LLAMA = replace(tiny_config(), intermediate_size=96, num_key_value_heads=4, rms_norm_eps=1e-5)
LLAMA = replace(LLAMA, max_position_embeddings=4096)
SCALED = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
OPT = OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4)

FAMILIES: dict[str, ModelConfig] = {
    "llama 1": replace(LLAMA, rms_norm_eps=1e-6, max_position_embeddings=2048),
    "llama 2": LLAMA,
    "code llama": replace(LLAMA, rope_parameters=RopeParameters(rope_theta=1e6), max_position_embeddings=16_384),
    "llama 3.1": replace(LLAMA, rope_parameters=SCALED, max_position_embeddings=131_072),
    "llama 3.2": replace(LLAMA, rope_parameters=replace(SCALED, factor=32.0), tie_word_embeddings=True),
    "llama 4": replace(LLAMA_4, head_dim=8, num_key_value_heads=4),
    "llama 3.2 vision": replace(MLLAMA, num_key_value_heads=4),
    "opt": OPT,
}
REFUSED = {("opt", "meta"), ("opt", "gguf"), ("llama 3.2 vision", "gguf")}
"""Family and format that has no place for it."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PATHS = [
    [("huggingface", {})],
    [("gguf", {})],
    [("meta", {})],
    [("meta", {"model_parallel": 2})],
    [("meta", {"model_parallel": 2}), ("meta", {"model_parallel": 4})],
    [("meta", {"model_parallel": 4}), ("gguf", {}), ("meta", {"model_parallel": 2})],
]


def folder_with(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Path:
    model: LanguageModel
    if isinstance(config, MllamaConfig):
        model = tiny_mllama(config)
    else:
        model = ARCHITECTURES.load(config.model_type).from_config(config)
        model.initialize(seed=11)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) / 8)
    save_huggingface(model.to(dtype), folder)
    return folder


def test_every_architecture_is_in_the_table() -> None:
    assert {config.model_type for config in FAMILIES.values()} == set(ARCHITECTURES.names())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: " → ".join(to + str(o or "") for to, o in path))
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(
    tmp_path: Path, family: str, path: list[tuple[str, dict[str, Any]]], dtype: torch.dtype
) -> None:
    source = at = folder_with(tmp_path / "source", FAMILIES[family], dtype)
    for step, (to, options) in enumerate([*path, ("huggingface", {})]):
        target = tmp_path / str(step)
        if (family, to) in REFUSED:
            with pytest.raises(ConfigError) as caught:
                convert(at, target, to=to, tokenizer=False, **options)
            assert f"'{FAMILIES[family].model_type}'" in caught.value.what
            assert not target.exists()
            return
        assert convert(at, target, to=to, tokenizer=False, **options)
        at = target

    with closing(open_checkpoint(source)) as before, closing(open_checkpoint(at)) as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name in before.tensors:
            one, other = before.read(name), after.read(name)
            assert not isinstance(one, PackedTensor)
            assert not isinstance(other, PackedTensor)
            assert torch.equal(one, other.to(dtype)), name
        config_class = type(FAMILIES[family])
        ours, theirs = config_class.from_hf(before.config), config_class.from_hf(after.config)
    lost: dict[str, Any] = {"dtype": ours.dtype}  # of most bytes: vectors are float32 in GGUF
    if "gguf" in dict(path):
        lost["initializer_range"] = ours.initializer_range
    assert replace(theirs, **lost) == ours


@pytest.mark.parametrize("family", sorted(family for family, to in REFUSED if to == "gguf"))
def test_what_llama_cpp_cannot_read_is_refused_for_that_reason(tmp_path: Path, family: str) -> None:
    source = folder_with(tmp_path / "source", FAMILIES[family], torch.float32)
    with pytest.raises(ConfigError, match=r"llama\.cpp, whose format it is, has no such architecture"):
        convert(source, tmp_path / "m.gguf", to="gguf", tokenizer=False)


@pytest.mark.parametrize("family", sorted(family for family, to in REFUSED if to == "gguf"))
def test_llama_cpp_has_no_such_architecture(family: str) -> None:
    gguf = pytest.importorskip("gguf", reason="llama.cpp's own table of architectures is not installed")

    names = {FAMILIES[family].model_type, FAMILIES[family].model_type.replace("_", "-")}
    assert names.isdisjoint(gguf.MODEL_ARCH_NAMES.values())
    assert "llama" in gguf.MODEL_ARCH_NAMES.values()


def test_the_paths_go_through_every_format() -> None:
    assert {to for path in PATHS for to, _ in path} == set(TARGETS)
