"""Writing GGUF: bit for bit what went in where the format can hold it, and as llama.cpp lays it out everywhere."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from camelid.base.errors import ConfigError, FormatError, ResourceError
from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint import gguf_write as writing
from camelid.checkpoint import open_checkpoint, save_huggingface
from camelid.checkpoint.gguf import GGUFCheckpoint
from camelid.checkpoint.gguf_write import save_gguf
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.model.attention import PackedContext
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.rope import LinearRope, Llama3Rope, RopeParameters, YarnRope
from camelid.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from camelid.checkpoint.base import Checkpoint

LLAMA3 = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
)
VARIANTS = {
    "grouped": CONFIG,
    "multi-head": replace(CONFIG, num_key_value_heads=4),
    "tied": replace(CONFIG, tie_word_embeddings=True),
    "llama3": replace(CONFIG, rope_parameters=LLAMA3, head_dim=32),
    "linear": replace(CONFIG, rope_parameters=LinearRope(factor=4.0)),
    "yarn": replace(CONFIG, rope_parameters=YarnRope(factor=4.0, original_max_position_embeddings=128)),
    "biased": replace(CONFIG, attention_bias=True, mlp_bias=True),
}


def folder_with(tmp_path: Path, config: LlamaConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Path:
    model = Llama.from_config(config)
    model.initialize(seed=7)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 16)
    folder = tmp_path / "model"
    save_huggingface(model.to(dtype), folder)
    return folder


def written(source: Path, path: Path, **options: Any) -> GGUFCheckpoint:
    with closing(open_checkpoint(source)) as checkpoint:
        save_gguf(checkpoint, path, **options)
    return GGUFCheckpoint(path)


def dense(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    value = checkpoint.read(name)
    return FORMATS.load(value.format).unpack(value) if isinstance(value, PackedTensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_comes_back_bit_for_bit(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    folder = folder_with(tmp_path, VARIANTS[variant], dtype)
    back = written(folder, tmp_path / "m.gguf")
    with closing(open_checkpoint(folder)) as checkpoint:
        assert back.tensors.keys() == checkpoint.tensors.keys()
        for name in checkpoint.tensors:
            assert torch.equal(back.read(name).to(dtype), checkpoint.read(name)), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_comes_back(tmp_path: Path, variant: str) -> None:
    config = VARIANTS[variant]
    back = LlamaConfig.from_hf(written(folder_with(tmp_path, config), tmp_path / "m.gguf").config)
    # Token ids came from the config, since no vocabulary was written.
    assert back == replace(config, dtype=back.dtype)


@pytest.mark.parametrize("variant", ["grouped", "tied", "llama3"])
def test_transformers_computes_the_same_from_the_file(tmp_path: Path, variant: str) -> None:
    folder = folder_with(tmp_path, VARIANTS[variant])
    written(folder, tmp_path / "m.gguf", tokenizer=small_tokenizer()).close()
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
        # transformers does not read the tensor that Llama 3's scaling is kept in.
        if variant == "llama3":
            assert model.config.rope_parameters["rope_type"] == "default"
            return
        got = model(ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_transformers_opens_a_file_whose_vocabulary_has_no_padding(tmp_path: Path) -> None:
    llama_2 = load_tokenizer(Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model")
    folder = folder_with(tmp_path, replace(VARIANTS["grouped"], vocab_size=32_000))
    written(folder, tmp_path / "m.gguf", tokenizer=llama_2).close()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert model.config.pad_token_id is None
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)


def test_camelid_computes_the_same_from_the_file(tmp_path: Path) -> None:
    from camelid.checkpoint import load_model

    folder = folder_with(tmp_path, VARIANTS["llama3"])
    context, logits = PackedContext([90]), []
    for checkpoint in (open_checkpoint(folder), written(folder, tmp_path / "m.gguf")):
        with closing(checkpoint), torch.no_grad():
            model = load_model(checkpoint)
            logits.append(model.logits(model(torch.arange(90), context.positions(), context)))
    assert torch.equal(*logits)


def small_tokenizer() -> Any:
    from camelid.tokenizer.gguf_vocab import from_gguf_metadata

    tokens = ["<|end|>", "<|start|>", *[chr(ord("a") + i) for i in range(26)], "ab"]
    keys = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": [3, 3, *[1] * 27], "merges": ["a b"]}
    keys |= {"bos_token_id": 1, "eos_token_id": 0}
    return from_gguf_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def test_the_gguf_package_reads_names_types_and_alignment(tmp_path: Path) -> None:
    written(folder_with(tmp_path, VARIANTS["llama3"], torch.bfloat16), tmp_path / "m.gguf").close()
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {"rope_freqs.weight", "token_embd.weight", "output.weight", "blk.1.ffn_down.weight"} <= tensors.keys()
    assert all(tensor.data_offset % 32 == 0 for tensor in tensors.values())
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "BF16"
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 32
    assert (fields["llama.rope.dimension_count"], fields["llama.attention.head_count_kv"]) == (32, 2)
    assert json.loads(fields["camelid.lineage"]).keys() == {"camelid"}


WIDE = replace(CONFIG, hidden_size=256, intermediate_size=512, num_hidden_layers=3)


@pytest.mark.parametrize("quantize", ["q2_k", "q3_k_m", "q4_0", "q4_k_m", "Q5_K_M", "q6_k", "q8_0", "iq4_nl"])
def test_a_quantised_file_holds_the_packed_weights(tmp_path: Path, quantize: str) -> None:
    folder = folder_with(tmp_path, WIDE)
    back = written(folder, tmp_path / "m.gguf", quantize=quantize)
    with closing(open_checkpoint(folder)) as checkpoint:
        for name, info in back.tensors.items():
            weight = checkpoint.read(name)
            if weight.ndim == 1:
                assert torch.equal(back.read(name), weight)
                continue
            codec = FORMATS.load(info.format)
            assert torch.equal(dense(back, name), codec.unpack(codec.pack(weight))), name
    assert back.tensors["lm_head.weight"].format == ("q8_0" if quantize == "q8_0" else "q6_k")


def test_rows_of_other_widths_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    config = replace(CONFIG, intermediate_size=90)
    back = written(folder_with(tmp_path, config), tmp_path / "m.gguf", quantize="q4_k_s")
    layer = "model.layers.1"
    assert back.tensors["lm_head.weight"].format == "q8_0"
    assert back.tensors[f"{layer}.self_attn.k_proj.weight"].format == "q5_0"
    assert back.tensors[f"{layer}.self_attn.v_proj.weight"].format == "q5_1"
    assert back.tensors[f"{layer}.mlp.down_proj.weight"].format == "float16"


def test_blocks_are_copied_as_they_are(tmp_path: Path) -> None:
    quantised = tmp_path / "q.gguf"
    written(folder_with(tmp_path, WIDE), quantised, quantize="q4_k_m").close()
    copy = written(quantised, tmp_path / "copy.gguf")
    first, second = read_gguf_header(quantised), read_gguf_header(tmp_path / "copy.gguf")
    content, copied = quantised.read_bytes(), (tmp_path / "copy.gguf").read_bytes()
    assert {n: t.type_name for n, t in first.tensors.items()} == {n: t.type_name for n, t in second.tensors.items()}
    for name, info in first.tensors.items():
        start = second.tensors[name].offset
        assert content[info.offset : info.offset + info.num_bytes] == copied[start : start + info.num_bytes]
    copy.close()


def test_a_few_rows_at_a_time_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path, WIDE)
    written(folder, tmp_path / "whole.gguf", quantize="q4_k_m").close()
    monkeypatch.setattr(writing, "CHUNK_ELEMENTS", 5 * 256)
    written(folder, tmp_path / "rows.gguf", quantize="q4_k_m").close()
    assert (tmp_path / "rows.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_tensors_are_let_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_checkpoint(folder_with(tmp_path))) as checkpoint:
        held: list[str] = []
        most = 0
        read, release = checkpoint.read, checkpoint.release

        def reading(name: str) -> torch.Tensor | PackedTensor:
            nonlocal most
            held.append(name)
            most = max(most, len(held))
            return read(name)

        monkeypatch.setattr(checkpoint, "read", reading)
        monkeypatch.setattr(checkpoint, "release", lambda name: (held.remove(name), release(name)))
        save_gguf(checkpoint, tmp_path / "m.gguf")
    assert (most, held) == (1, [])


def test_generation_settings_and_template_travel(tmp_path: Path) -> None:
    generation = {"bos_token_id": 3, "eos_token_id": [4, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    template = "{% for message in messages %}{{ message.content }}🦙{% endfor %}"
    options = {"generation_config": {**generation, "top_k": 40}, "chat_template": template}
    back = written(folder_with(tmp_path), tmp_path / "m.gguf", lineage={"parent": "über"}, **options)
    assert back.generation_config == {**generation, "top_k": 40}
    assert back.chat_template == template
    assert json.loads(read_gguf_header(back.path).metadata["camelid.lineage"])["parent"] == "über"


def test_a_greedy_model_gets_no_sampling_settings(tmp_path: Path) -> None:
    generation = {"eos_token_id": 4, "do_sample": False, "temperature": 0.6}
    back = written(folder_with(tmp_path), tmp_path / "m.gguf", generation_config=generation)
    assert back.generation_config == {"bos_token_id": 1, "eos_token_id": [4]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "q4_k"}, "unknown quantisation 'q4_k'"),
        ({"quantize": "q4_0", "dtype": "float16"}, "exclude each other"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"generation_config": {"eos_token_id": [1, 2, 3, 4]}}, "so many tokens"),
        ({"generation_config": {"eos_token_id": "two"}}, "no token ids"),
        ({"generation_config": {"temperature": "hot"}}, "no number"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        written(folder_with(tmp_path), tmp_path / "m.gguf", **options)
    assert not (tmp_path / "m.gguf").exists()


def test_yarn_with_settings_of_its_own_is_refused(tmp_path: Path) -> None:
    rope = YarnRope(factor=4.0, original_max_position_embeddings=128, beta_fast=16.0)
    with pytest.raises(ConfigError, match="YaRN"):
        written(folder_with(tmp_path, replace(CONFIG, rope_parameters=rope)), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (float("nan"), {"quantize": "q8_0"}, "not-a-number"),
        (1e6, {"dtype": "float16"}, "too large for float16"),
        (1e8, {"quantize": "q8_0"}, "too large for q8_0"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused_by_name_and_leaves_the_old_file(
    tmp_path: Path, value: float, options: dict[str, Any], message: str
) -> None:
    model = Llama.from_config(CONFIG)
    model.initialize(seed=7)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 5] = value
    save_huggingface(model, tmp_path / "model")
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=message) as caught:
        written(tmp_path / "model", path, **options)
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value.where)
    assert path.read_bytes() == b"old"
    assert {file.name for file in tmp_path.iterdir()} == {"model", "m.gguf"}


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match="not enough disk space"):
        written(folder, tmp_path / "m.gguf")


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    with pytest.raises(ConfigError, match="a folder is in the way"):
        written(folder, folder)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(FormatError, match="missing in the checkpoint"):
        written(folder, tmp_path / "m.gguf")


def test_divisors_are_those_of_the_reference_code(tmp_path: Path) -> None:
    written(folder_with(tmp_path, VARIANTS["llama3"]), tmp_path / "m.gguf").close()
    (tensor,) = [one for one in gguf.GGUFReader(tmp_path / "m.gguf").tensors if one.name == "rope_freqs.weight"]
    plain = RopeParameters(rope_theta=500_000.0).frequencies(32)
    np.testing.assert_allclose(tensor.data, (plain / LLAMA3.frequencies(32)).numpy(), rtol=0)
