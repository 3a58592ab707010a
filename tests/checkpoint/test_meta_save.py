"""Meta's folders, written: round trips bit for bit, and what Meta's own code makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meta_folder import meta_tensors, write_meta_folder
from tiny import IDS, logits

from camelid.base.errors import ConfigError
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.lineage import verify_lineage
from camelid.checkpoint.meta_params import (
    Shapes,
    config_from_params,
    feed_forward_rule,
    feed_forward_width,
    params_from_config,
)
from camelid.checkpoint.meta_save import save_meta
from camelid.checkpoint.torch_zip import TorchFile
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.presets import PRESETS
from camelid.model.rope import Llama3Rope, RopeParameters, YarnRope
from camelid.tokenizer import load_tokenizer

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"

LLAMAS = ("LLaMA", "Llama 2", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2", "Llama 3.3")

PLAIN = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    rms_norm_eps=1e-6,
    dtype="bfloat16",
)
SCALED = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
FAMILIES = {
    "llama 1": PLAIN,
    "llama 2": replace(PLAIN, rms_norm_eps=1e-5, max_position_embeddings=4096),
    "shared keys": replace(PLAIN, num_key_value_heads=4, max_position_embeddings=4096),
    "code llama": replace(PLAIN, rope_parameters=RopeParameters(rope_theta=1e6), max_position_embeddings=16_384),
    "llama 3.1": replace(PLAIN, num_key_value_heads=4, rope_parameters=SCALED, max_position_embeddings=131_072),
    "llama 3.2": replace(PLAIN, rope_parameters=replace(SCALED, factor=32.0), tie_word_embeddings=True),
    "its own": replace(PLAIN, max_position_embeddings=77, eos_token_id=(3, 4), pad_token_id=5, initializer_range=0.5),
}


def tiny(config: LlamaConfig = PLAIN, dtype: torch.dtype = torch.bfloat16) -> Llama:
    model = Llama.from_config(config)
    model.initialize(seed=5)
    return model.to(dtype)


def to_meta(source: Path, target: Path, **options: Any) -> Path:
    with closing(open_checkpoint(source)) as checkpoint:
        save_meta(checkpoint, target, **options)
    return target


def to_huggingface(source: Path, target: Path) -> Path:
    with closing(open_checkpoint(source)) as checkpoint:
        save_huggingface(checkpoint, target)
    return target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_huggingface_to_meta_and_back(tmp_path: Path, family: str, shards: int) -> None:
    save_huggingface(tiny(FAMILIES[family]), tmp_path / "hf")

    to_meta(tmp_path / "hf", tmp_path / "meta", model_parallel=shards)
    to_huggingface(tmp_path / "meta", tmp_path / "back")

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    verify_lineage(tmp_path / "meta")


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_meta_to_huggingface_and_back(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-6, "vocab_size": -1}
    before = write_meta_folder(tmp_path / "meta", meta_tensors(tiny(dtype=dtype)), params, shards=shards)

    to_huggingface(before, tmp_path / "hf")
    after = to_meta(tmp_path / "hf", tmp_path / "back", model_parallel=shards)

    for rank in range(shards):
        one, other = (torch.load(folder / f"consolidated.{rank:02}.pth") for folder in (before, after))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_resharding(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-6}
    held = meta_tensors(tiny())
    eight = write_meta_folder(tmp_path / "eight", held, params, shards=8)
    two = write_meta_folder(tmp_path / "two", held, params, shards=2)

    to_meta(eight, tmp_path / "resharded", model_parallel=2)

    for rank in (0, 1):
        files = [TorchFile(folder / f"consolidated.{rank:02}.pth") for folder in (two, tmp_path / "resharded")]
        assert files[0].tensors.keys() == files[1].tensors.keys()
        assert all(torch.equal(files[0].read(name), files[1].read(name)) for name in files[0].tensors)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.family in LLAMAS])
def test_the_params_of_every_release_give_its_config_back(name: str) -> None:
    config = PRESETS[name].config

    params = params_from_config(config)

    shapes = Shapes(
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_key_value_heads * config.head_dim,
        config.tie_word_embeddings,
        config.dtype,
    )
    assert LlamaConfig.from_hf(config_from_params(params, shapes, Path("params.json"))) == config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-7b", {"multiple_of": 256, "norm_eps": 1e-6}),
        ("llama-2-70b", {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8, "norm_eps": 1e-5}),
        ("llama-3-8b", {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "rope_theta": 500_000.0}),
        ("llama-3.1-405b", {"multiple_of": 4096, "ffn_dim_multiplier": 1.2, "use_scaled_rope": True}),
        ("llama-3.2-1b", {"multiple_of": 256, "ffn_dim_multiplier": 1.5, "use_scaled_rope": True}),
    ],
)
def test_params_are_the_releases_own(name: str, expected: dict[str, Any]) -> None:
    params = params_from_config(PRESETS[name].config)

    assert {key: params[key] for key in expected} == expected
    assert params.keys() <= {
        "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
        "rope_theta", "use_scaled_rope",
    }  # fmt: skip


@given(dim=st.integers(8, 20_000), width=st.integers(8, 100_000))
def test_every_width_has_a_rule(dim: int, width: int) -> None:
    assert feed_forward_width(dim, *feed_forward_rule(dim, width)) == width


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 16}, "heads of 16"),
        ({"rope_parameters": YarnRope(factor=2.0, original_max_position_embeddings=64)}, "rope scaling"),
        ({"rope_parameters": replace(SCALED, high_freq_factor=3.0)}, "rope scaling"),
    ],
)
def test_what_the_format_has_no_place_for(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    save_huggingface(tiny(replace(PLAIN, **change)), tmp_path / "hf")

    with pytest.raises(ConfigError, match=f"no place for .*{what}"):
        to_meta(tmp_path / "hf", tmp_path / "meta")

    assert not (tmp_path / "meta").exists()


@pytest.mark.parametrize("shards", [3, 16])
def test_a_number_of_shards_that_does_not_divide(tmp_path: Path, shards: int) -> None:
    save_huggingface(tiny(), tmp_path / "hf")

    with pytest.raises(ConfigError, match=rf"cannot be cut into {shards} shards(.|\n)*at most 8"):
        to_meta(tmp_path / "hf", tmp_path / "meta", model_parallel=shards)


def test_another_dtype_and_a_number_too_large_for_it(tmp_path: Path) -> None:
    model = tiny(dtype=torch.float32)
    save_huggingface(model, tmp_path / "hf")
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    save_huggingface(model, tmp_path / "large")

    to_meta(tmp_path / "hf", tmp_path / "meta", dtype=torch.float16)

    with closing(open_checkpoint(tmp_path / "meta")) as checkpoint:
        assert checkpoint.config["torch_dtype"] == "float16"
    with pytest.raises(ConfigError, match=r"too large for float16 \(model\.norm\.weight\)"):
        to_meta(tmp_path / "large", tmp_path / "refused", dtype=torch.float16)
    assert not (tmp_path / "refused").exists()


def test_llama_2s_tokenizer_travels_unchanged(tmp_path: Path) -> None:
    save_huggingface(tiny(), tmp_path / "hf")

    to_meta(tmp_path / "hf", tmp_path / "meta", tokenizer=load_tokenizer(LLAMA_2))

    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == LLAMA_2.read_bytes()


def as_hugging_face_names_them(name: str, token_id: int) -> str:
    """Of Llama 3.1's control tokens: Hugging Face's files have two reserved ones that Meta has named since."""
    reserved = {128_002: 0, 128_003: 1, 128_005: 2, 128_011: 3, **{i: i - 128_008 for i in range(128_012, 128_256)}}
    return f"<|reserved_special_token_{reserved[token_id]}|>" if token_id in reserved else name


def renamed(folder: Path, name: Callable[[str, int], str], extra: Sequence[str] = ()) -> Path:
    """The tokenizer in the folder with other names for its control tokens, and further ones behind them."""
    file = folder / "tokenizer.json"
    definition = json.loads(file.read_text())
    for token in definition["added_tokens"]:
        token["content"] = name(token["content"], token["id"])
    last = definition["added_tokens"][-1]
    definition["added_tokens"] += [{**last, "id": last["id"] + i, "content": t} for i, t in enumerate(extra, start=1)]
    file.write_text(json.dumps(definition))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra", "travels"),
    [
        (lambda name, _: name, (), True),
        (as_hugging_face_names_them, (), True),
        (as_hugging_face_names_them, ("<|image|>",), True),  # Llama 3.2 Vision's
        (as_hugging_face_names_them, ("<|other|>",), False),
        (lambda name, i: "<|im_start|>" if i == 128_011 else name, (), False),
    ],
)
def test_llama_3s_tokenizer_travels_unchanged(
    tmp_path: Path, name: Callable[[str, int], str], extra: tuple[str, ...], travels: bool
) -> None:
    models = pytest.importorskip("llama_models")
    theirs = Path(models.__file__).parent / "llama3" / "tokenizer.model"
    save_huggingface(tiny(), tmp_path / "hf")
    load_tokenizer(theirs).save(tmp_path / "as json")
    tokenizer = load_tokenizer(renamed(tmp_path / "as json", name, extra))

    folder = to_meta(tmp_path / "hf", tmp_path / "meta", tokenizer=tokenizer)

    assert (folder / "tokenizer.model").exists() == travels
    assert not travels or (folder / "tokenizer.model").read_bytes() == theirs.read_bytes()


def test_another_tokenizer_is_written_in_its_own_form_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from camelid.tokenizer.train import train_tokenizer

    save_huggingface(tiny(), tmp_path / "hf")
    tokenizer = train_tokenizer(["a llama and an alpaca"], 280)

    with caplog.at_level("WARNING", logger="camelid"):
        to_meta(tmp_path / "hf", tmp_path / "meta", tokenizer=tokenizer)

    assert "no form that Meta's code reads" in caplog.text
    with closing(open_checkpoint(tmp_path / "meta")) as checkpoint:
        assert checkpoint.load_tokenizer().encode("a llama") == tokenizer.encode("a llama")


def test_template_and_generation_settings_are_kept(tmp_path: Path) -> None:
    save_huggingface(tiny(), tmp_path / "hf")
    settings = {"eos_token_id": [2, 3], "temperature": 0.6}

    to_meta(tmp_path / "hf", tmp_path / "meta", chat_template="{{ 'ä\n' }}", generation_config=settings)

    with closing(open_checkpoint(tmp_path / "meta")) as checkpoint:
        assert checkpoint.chat_template == "{{ 'ä\n' }}"
        assert checkpoint.generation_config == settings


@pytest.mark.parametrize("family", ["llama 1", "shared keys", "llama 3.1"])
def test_metas_own_model_computes_the_same_from_what_we_write(
    tmp_path: Path, without_fairscale: None, family: str
) -> None:
    pytest.importorskip("llama_models", reason="Meta's reference code is not installed")
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    config = FAMILIES[family]
    model = tiny(config, dtype=torch.float32)
    save_huggingface(model, tmp_path / "hf")
    folder = to_meta(tmp_path / "hf", tmp_path / "meta")
    params = json.loads((folder / "params.json").read_text())

    theirs = Transformer(ModelArgs(max_seq_len=64, max_batch_size=1, **params))
    theirs.load_state_dict(torch.load(folder / "consolidated.00.pth", weights_only=True), strict=True)
    with torch.inference_mode():
        expected = theirs(IDS[None], 0)[0]

    assert torch.allclose(logits(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shards", [2, 4])
def test_metas_own_resharding_joins_our_shards_to_the_same(
    tmp_path: Path, without_fairscale: None, shards: int
) -> None:
    pytest.importorskip("llama_models", reason="Meta's reference code is not installed")
    from llama_models.checkpoint import reshard_mp

    big = replace(PLAIN, vocab_size=128_256, num_key_value_heads=4, rope_parameters=SCALED, hidden_size=32)
    save_huggingface(tiny(replace(big, head_dim=4, intermediate_size=64)), tmp_path / "hf")
    one = to_meta(tmp_path / "hf", tmp_path / "one")
    many = to_meta(tmp_path / "hf", tmp_path / "many", model_parallel=shards)

    parts = [torch.load(many / f"consolidated.{rank:02}.pth", weights_only=True) for rank in range(shards)]
    joined = reshard_mp(parts, size=1, rank=0)

    expected = torch.load(one / "consolidated.00.pth", weights_only=True)
    assert joined.keys() == expected.keys()
    assert all(torch.equal(joined[name], expected[name]) for name in expected)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_huggingface(tiny(), tmp_path / "hf")
    with closing(open_checkpoint(tmp_path / "hf")) as checkpoint:
        monkeypatch.setattr(checkpoint, "read", lambda name: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_meta(checkpoint, tmp_path / "meta")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_camelid_loads_what_it_wrote(tmp_path: Path) -> None:
    save_huggingface(tiny(), tmp_path / "hf")
    folder = to_meta(tmp_path / "hf", tmp_path / "meta", model_parallel=2)
    shutil.rmtree(tmp_path / "hf")

    with closing(open_checkpoint(folder)) as checkpoint:
        assert torch.equal(logits(load_model(checkpoint, dtype=torch.bfloat16)), logits(tiny()))
