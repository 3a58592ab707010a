"""Meta's folders of Llama 4: read as they were cut, written as they are read, the rest refused."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama4 import LLAMA_4, llama4_folder

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint import convert, load_model, open_checkpoint
from camelid.checkpoint.torch_zip import TorchFile
from camelid.model.attention import PackedContext
from camelid.model.llama4 import Llama4Config
from camelid.model.rope import Llama3Rope

META = replace(LLAMA_4, head_dim=8, num_key_value_heads=4, bos_token_id=200_000, eos_token_id=200_001)
META = replace(META, pad_token_id=200_018, max_position_embeddings=262_144)
SCOUT_ROPE = Llama3Rope(
    rope_theta=500_000.0, factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192
)
VARIANTS = {
    "scout": replace(META, rope_parameters=SCOUT_ROPE),
    "maverick": replace(META, num_hidden_layers=4, interleave_moe_layer_step=2, use_qk_norm=False),
    "its own": replace(
        META, num_experts_per_tok=2, attention_chunk_size=16, attn_temperature_tuning=False, no_rope_layer_interval=3
    ),
    "without chunks or far layers": replace(META, no_rope_layers=(1, 1, 1, 1, 1), attention_chunk_size=262_144),
}
SCOUT_PARAMS: dict[str, Any] = {
    "dim": 32,
    "n_layers": 5,
    "n_heads": 4,
    "n_kv_heads": 4,
    "head_dim": 8,
    "vocab_size": 96,
    "multiple_of": 96,
    "ffn_dim_multiplier": 1.0,
    "ffn_exp": 4.0,
    "norm_eps": 1e-5,
    "attention_chunk_size": 8192,
    "rope_theta": 500_000.0,
    "use_scaled_rope": True,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "moe_args": {"num_experts": 4, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1},
}


def shards_of(source: Path, count: int) -> list[dict[str, Any]]:
    """The weights as Meta's trainer leaves them, cut with nothing but torch."""
    with closing(open_checkpoint(source)) as checkpoint:
        held = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    shards = []
    for rank in range(count):
        part: dict[str, Any] = {
            "tok_embeddings.weight": held["model.embed_tokens.weight"].chunk(count)[rank],
            "output.weight": held["lm_head.weight"].chunk(count)[rank],
            "norm.weight": held["model.norm.weight"],
            "rope.freqs": torch.zeros(4),
        }
        for layer in range(5):
            ours, meta = f"model.layers.{layer}", f"layers.{layer}"
            qkv = [held[f"{ours}.self_attn.{kind}_proj.weight"].chunk(count)[rank] for kind in "qkv"]
            part[f"{meta}.attention.wqkv.weight"] = torch.cat(qkv)
            part[f"{meta}.attention.wqkv.layer_norm_weight"] = held[f"{ours}.input_layernorm.weight"]
            part[f"{meta}.attention.wqkv._extra_state"] = io.BytesIO(b"state")
            part[f"{meta}.attention.wo.weight"] = held[f"{ours}.self_attn.o_proj.weight"].chunk(count, 1)[rank]
            moe, ours_moe = f"{meta}.feed_forward", f"{ours}.feed_forward"
            part[f"{moe}.norm.weight"] = held[f"{ours}.post_attention_layernorm.weight"]
            part[f"{moe}.router_DE"] = held[f"{ours_moe}.router.weight"].T
            part[f"{moe}.global_gate_stats_3E"] = torch.zeros(3, 4)
            gate_XEF, up_XEF = held[f"{ours_moe}.experts.gate_up_proj"].chunk(2, -1)
            part[f"{moe}.experts.moe_w_in_eD_F"] = gate_XEF.chunk(count, 2)[rank].reshape(4 * 32, -1)
            part[f"{moe}.experts.moe_w_swiglu_eD_F"] = up_XEF.chunk(count, 2)[rank].reshape(4 * 32, -1)
            down_XFE = held[f"{ours_moe}.experts.down_proj"].chunk(count, 1)[rank]
            part[f"{moe}.experts.moe_w_out_eF_D"] = down_XFE.reshape(-1, 32)
            shared = f"{ours_moe}.shared_expert"
            part[f"{moe}.w_in_shared_FD.weight"] = held[f"{shared}.gate_proj.weight"].chunk(count)[rank]
            part[f"{moe}.w_swiglu_FD.weight"] = held[f"{shared}.up_proj.weight"].chunk(count)[rank]
            part[f"{moe}.w_out_shared_DF.weight"] = held[f"{shared}.down_proj.weight"].chunk(count, 1)[rank]
        shards.append({name: one.contiguous() if isinstance(one, torch.Tensor) else one for name, one in part.items()})
    return shards


def meta_folder(folder: Path, shards: list[dict[str, Any]], **params: Any) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(SCOUT_PARAMS | params))
    for rank, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{rank:02}.pth")
    return folder


@pytest.fixture(scope="module")
def scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama4_folder(tmp_path_factory.mktemp("scout") / "hf", VARIANTS["scout"], torch.bfloat16)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_was_cut_is_joined(tmp_path: Path, scout: Path, count: int) -> None:
    folder = meta_folder(tmp_path / "meta", shards_of(scout, count))

    with closing(open_checkpoint(folder)) as joined, closing(open_checkpoint(scout)) as whole:
        assert joined.tensors.keys() == whole.tensors.keys()
        for name, info in whole.tensors.items():
            assert (joined.tensors[name].shape, joined.tensors[name].format) == (info.shape, "bfloat16")
            assert torch.equal(joined.read(name), whole.read(name)), name
            joined.release(name)
        ours, theirs = Llama4Config.from_hf(joined.config), Llama4Config.from_hf(whole.config)
    assert ours == theirs


@pytest.mark.parametrize("count", [2, 4])
def test_meta_to_huggingface_and_back_is_the_same_files_contents(tmp_path: Path, scout: Path, count: int) -> None:
    folder = meta_folder(tmp_path / "meta", shards_of(scout, count))
    convert(folder, tmp_path / "hf", to="huggingface", tokenizer=False)
    convert(tmp_path / "hf", tmp_path / "back", to="meta", model_parallel=count, tokenizer=False)

    for rank in range(count):
        first, second = (TorchFile(at / f"consolidated.{rank:02}.pth") for at in (folder, tmp_path / "back"))
        left = {name for name in first.tensors if not name.endswith(("rope.freqs", "global_gate_stats_3E"))}
        assert left == second.tensors.keys()
        assert all(torch.equal(first.read(name), second.read(name)) for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_huggingface_to_meta_and_back(tmp_path: Path, variant: str, count: int, dtype: torch.dtype) -> None:
    source = llama4_folder(tmp_path / "hf", VARIANTS[variant], dtype)
    convert(source, tmp_path / "meta", to="meta", model_parallel=count, tokenizer=False)
    convert(tmp_path / "meta", tmp_path / "back", to="huggingface", tokenizer=False)

    with closing(open_checkpoint(source)) as before, closing(open_checkpoint(tmp_path / "back")) as after:
        assert before.tensors.keys() == after.tensors.keys()
        assert all(torch.equal(before.read(name), after.read(name)) for name in before.tensors)
        assert Llama4Config.from_hf(after.config) == Llama4Config.from_hf(before.config)


@torch.inference_mode()
def test_a_meta_folder_computes_what_the_other_does(tmp_path: Path, scout: Path) -> None:
    context, logits = PackedContext([30]), []
    for path in (scout, meta_folder(tmp_path / "meta", shards_of(scout, 2))):
        with closing(open_checkpoint(path)) as checkpoint:
            model = load_model(checkpoint)
            logits.append(model.logits(model(torch.arange(30), context.positions(), context)))
    assert torch.equal(*logits)


def test_parts_for_images_are_left_out_with_a_warning(tmp_path: Path, scout: Path) -> None:
    shards = shards_of(scout, 1)
    shards[0]["vision_embeddings.vision_encoder.conv1._linear.weight"] = torch.zeros(2, 2)
    shards[0]["vision_projection.weight"] = torch.zeros(2, 2)
    with pytest.warns(UserWarning, match="2 tensors that read images are left out"):
        checkpoint = open_checkpoint(meta_folder(tmp_path / "meta", shards, vision_args={"dim": 2}))
    with closing(checkpoint):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"moe_args": None}, ConfigError, "without experts"),
        ({"moe_args": {"num_experts": 3}}, FormatError, "do not fit together"),
        ({"moe_args": {"num_experts": 0}}, FormatError, "num_experts is 0"),
        ({"n_heads": 2**40}, FormatError, "n_heads is"),
        ({"n_kv_heads": 3}, FormatError, "do not fit together"),
        ({"n_layers": 10_000}, FormatError, "n_layers is 10000"),
        ({"nope_layer_interval": 0}, FormatError, "nope_layer_interval is 0"),
        ({"rope_theta": "x"}, FormatError, "rope_theta is 'x'"),
        ({"use_qk_norm": "yes"}, ConfigError, "use_qk_norm"),
        ({"dim": 64}, FormatError, "does not fit"),
    ],
)
def test_params_that_cannot_be_honoured(
    tmp_path: Path, scout: Path, params: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder = meta_folder(tmp_path / "meta", shards_of(scout, 2), **params)
    with pytest.raises(error, match=message), closing(open_checkpoint(folder)) as checkpoint:
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.attention.wq.weight", torch.zeros(2, 2), "no place in a Llama 4"),
        ("layers.0.more._extra_state", io.BytesIO(), "no place in a Llama 4"),
        ("layers.1.feed_forward.experts.moe_w_swiglu_eD_F", None, "there is no tensor"),
        ("layers.1.feed_forward.experts.moe_w_swiglu_eD_F", torch.zeros(128, 8), "has the shape"),
        ("layers.1.attention.wo.weight", torch.zeros(3), "do not fit"),
    ],
)
def test_tensors_that_are_no_llama_4s(tmp_path: Path, scout: Path, name: str, value: Any, message: str) -> None:
    shards = shards_of(scout, 2)
    for shard in shards:
        shard[name] = value
        if value is None:
            del shard[name]
    with pytest.raises(FormatError, match=message), closing(open_checkpoint(meta_folder(tmp_path / "m", shards))) as c:
        load_model(c)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_layers": (0, 3)}, "no step"),
        ({"no_rope_layers": (0, 1, 1, 0, 1)}, "no_rope_layers"),
        ({"tie_word_embeddings": True}, "embedding"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 16}, "heads of 16"),
        ({"rope_parameters": replace(SCOUT_ROPE, original_max_position_embeddings=64)}, "rope scaling"),
    ],
)
def test_what_meta_has_no_place_for_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = llama4_folder(tmp_path / "hf", replace(META, **change))
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / "meta", to="meta", tokenizer=False)
    assert not (tmp_path / "meta").exists()


def test_a_config_beside_says_what_params_leave_open_and_no_more(tmp_path: Path, scout: Path) -> None:
    folder = meta_folder(tmp_path / "meta", shards_of(scout, 1))
    config = json.loads((scout / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10_485_760}))
    with closing(open_checkpoint(folder)) as checkpoint:
        assert checkpoint.config["max_position_embeddings"] == 10_485_760
    (folder / "config.json").write_text(json.dumps(config | {"use_qk_norm": False}))
    with closing(open_checkpoint(folder)) as checkpoint, pytest.raises(FormatError, match="disagree on use_qk_norm"):
        _ = checkpoint.config


def test_no_warning_without_images(tmp_path: Path, scout: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_checkpoint(meta_folder(tmp_path / "meta", shards_of(scout, 1))).close()
