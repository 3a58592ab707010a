"""Llama 4 as GGUF: every weight there and back bit for bit, laid out as llama.cpp reads it, the rest refused."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from tiny_llama4 import LLAMA_4, llama4_folder

from camelid.base.errors import ConfigError, FormatError
from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint import convert, load_model, open_checkpoint
from camelid.checkpoint import gguf_write as writing
from camelid.codecs import FORMATS
from camelid.model.attention import PackedContext
from camelid.model.llama4 import Llama4Config
from camelid.model.rope import Llama3Rope, RopeParameters

if TYPE_CHECKING:
    from pathlib import Path

SCOUT_ROPE = Llama3Rope(
    rope_theta=500_000.0, factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192
)
VARIANTS = {
    "scout": replace(LLAMA_4, rope_parameters=SCOUT_ROPE),
    "maverick": replace(
        LLAMA_4, num_hidden_layers=4, num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False
    ),
    "several experts a token": replace(LLAMA_4, num_experts_per_tok=3),
    "Llama 3's scaling": replace(LLAMA_4, rope_parameters=replace(SCOUT_ROPE, high_freq_factor=4.0), head_dim=64),
    "tied, other theta": replace(
        LLAMA_4, tie_word_embeddings=True, rope_parameters=RopeParameters(rope_theta=10_000.0)
    ),
    "layers by name": replace(LLAMA_4, moe_layers=(0, 1, 2, 3, 4), no_rope_layers=(1, 1, 1, 0, 1)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def written(source: Path, path: Path, **options: Any) -> Path:
    convert(source, path, to="gguf", tokenizer=False, **options)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_and_setting_comes_back(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    source = llama4_folder(tmp_path / "source", VARIANTS[variant], dtype)
    file = written(source, tmp_path / "m.gguf")
    convert(file, tmp_path / "back", to="huggingface", tokenizer=False)

    with closing(open_checkpoint(source)) as before, closing(open_checkpoint(tmp_path / "back")) as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name in before.tensors:
            assert torch.equal(before.read(name), after.read(name).to(dtype)), name
        ours, theirs = Llama4Config.from_hf(before.config), Llama4Config.from_hf(after.config)
    assert theirs == replace(ours, dtype=theirs.dtype)


@torch.inference_mode()
def test_the_file_computes_what_the_folder_does(tmp_path: Path) -> None:
    source = llama4_folder(tmp_path / "source", VARIANTS["scout"])
    ids, context, logits = torch.arange(40) % 96, PackedContext([40]), []
    for path in (source, written(source, tmp_path / "m.gguf")):
        with closing(open_checkpoint(path)) as checkpoint:
            model = load_model(checkpoint)
            logits.append(model.logits(model(ids, context.positions(), context)))
    assert torch.equal(*logits)


def test_names_types_and_order_are_llama_cpps(tmp_path: Path) -> None:
    source = llama4_folder(tmp_path / "source", VARIANTS["maverick"], torch.bfloat16)
    reader = gguf.GGUFReader(written(source, tmp_path / "m.gguf"))

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA4, 4)
    assert tensors.keys() <= {name for _, name in known.mapping.values()} | {
        f"{name}.weight" for _, name in known.mapping.values()
    }
    with closing(open_checkpoint(source)) as checkpoint:
        gate_up = checkpoint.read("model.layers.1.feed_forward.experts.gate_up_proj").float().numpy()
        down = checkpoint.read("model.layers.1.feed_forward.experts.down_proj").float().numpy()
        query = checkpoint.read("model.layers.0.self_attn.q_proj.weight").float().numpy()
    for name, expected in {
        "blk.1.ffn_gate_exps.weight": gate_up[..., :64].swapaxes(1, 2),
        "blk.1.ffn_up_exps.weight": gate_up[..., 64:].swapaxes(1, 2),
        "blk.1.ffn_down_exps.weight": down.swapaxes(1, 2),
        "blk.0.attn_q.weight": query,
    }.items():
        data = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        np.testing.assert_array_equal(data, expected)
        assert tensors[name].shape.tolist() == list(expected.shape[::-1])
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert "blk.0.ffn_gate.weight" in tensors
    assert "blk.0.ffn_gate_exps.weight" not in tensors

    settings = {key: field.contents() for key, field in reader.fields.items() if key.startswith("llama4.")}
    assert settings["llama4.feed_forward_length"] == 96
    assert settings["llama4.expert_feed_forward_length"] == 64
    assert settings["llama4.interleave_moe_layer_step"] == 2
    assert (settings["llama4.expert_count"], settings["llama4.expert_used_count"]) == (128, 1)


@pytest.mark.parametrize("quantize", ["q4_k_m", "q8_0", "iq4_nl"])
def test_quantised_experts_are_those_of_the_codec(tmp_path: Path, quantize: str) -> None:
    config = replace(LLAMA_4, hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=2)
    source = llama4_folder(tmp_path / "source", config)
    file = written(source, tmp_path / "m.gguf", quantize=quantize)

    header = read_gguf_header(file)
    with closing(open_checkpoint(source)) as dense, closing(open_checkpoint(file)) as packed:
        for layer in range(2):
            name = f"model.layers.{layer}.feed_forward.experts.gate_up_proj"
            whole_XIO, found_XIO = dense.read(name), packed.read(name)
            for part, found in zip(("gate", "up"), found_XIO.split(256, -1), strict=True):
                codec = FORMATS.load(header.tensors[f"blk.{layer}.ffn_{part}_exps.weight"].type_name.lower())
                rows = whole_XIO.split(256, -1)[part == "up"].transpose(1, 2).contiguous()
                assert torch.equal(codec.unpack(codec.pack(rows)), found.transpose(1, 2))
    assert header.tensors["blk.0.ffn_gate_inp.weight"].type_name == "F32"
    down = {header.tensors[f"blk.1.ffn_down_{kind}.weight"].type_name for kind in ("exps", "shexp")}
    assert down == {"q4_k_m": {"Q6_K"}, "q8_0": {"Q8_0"}, "iq4_nl": {"IQ4_NL"}}[quantize]


def test_a_few_rows_at_a_time_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = llama4_folder(tmp_path / "source")
    whole = written(source, tmp_path / "whole.gguf")
    monkeypatch.setattr(writing, "CHUNK_ELEMENTS", 5 * 32)
    assert written(source, tmp_path / "rows.gguf").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attention_chunk_size", 4096),
        ("floor_scale", 4096),
        ("attn_scale", 0.2),
        ("attn_temperature_tuning", False),
        ("use_qk_norm", False),
        ("no_rope_layers", (1, 0, 1, 0, 1)),
        ("moe_layers", (0, 3)),
        ("attention_bias", True),
    ],
)
def test_what_llama_cpp_takes_for_granted_must_be_so(tmp_path: Path, setting: str, value: Any) -> None:
    source = llama4_folder(tmp_path / "source", replace(LLAMA_4, **{setting: value}))
    with pytest.raises(ConfigError, match=f"no place for {setting}"):
        written(source, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def changed(file: Path, tmp_path: Path, *, settings: dict[str, Any] | None = None, without: str = "") -> Path:
    """The file written anew by the gguf package, with other settings or without a tensor."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "changed.gguf", "llama4")
    values = {key: field.contents() for key, field in reader.fields.items() if key.startswith("llama4.")}
    for key, value in (values | (settings or {})).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "changed.gguf"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"llama4.attention.sliding_window": 0}, ConfigError, "sliding_window"),
        ({"llama4.expert_count": 0}, FormatError, "expert_count"),
        ({"llama4.interleave_moe_layer_step": 0}, FormatError, "interleave_moe_layer_step"),
        ({"llama4.block_count": 2_000_000_000}, FormatError, "block_count"),
        ({"llama4.block_count": 4.0}, FormatError, "block_count"),
    ],
)
def test_settings_that_no_llama_4_has(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = changed(written(llama4_folder(tmp_path / "source"), tmp_path / "m.gguf"), tmp_path, settings=settings)
    with closing(open_checkpoint(file)) as checkpoint, pytest.raises(error) as caught:
        _ = checkpoint.config
    assert message in str(caught.value)


@pytest.mark.parametrize("without", ["blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"])
def test_a_missing_part_is_named(tmp_path: Path, without: str) -> None:
    file = changed(written(llama4_folder(tmp_path / "source"), tmp_path / "m.gguf"), tmp_path, without=without)
    with pytest.raises(FormatError, match="missing"), closing(open_checkpoint(file)) as checkpoint:
        load_model(checkpoint)
