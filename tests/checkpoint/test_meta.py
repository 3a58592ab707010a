"""Meta's folders, read: one shard or several, from LLaMA 1 to Llama 3.3."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_folder import meta_tensors, write_meta_folder
from tiny import logits

from camelid.base.errors import ConfigError, FormatError, NotFoundError, TokenizerError
from camelid.checkpoint import load_model, open_checkpoint
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.rope import Llama3Rope, RopeParameters

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
)
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 8, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}
SCALED = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


def tiny(config: LlamaConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Llama:
    model = Llama.from_config(config)
    model.initialize(seed=3)
    return model.to(dtype)


def opened(folder: Path) -> tuple[Llama, dict[str, Any]]:
    with closing(open_checkpoint(folder)) as checkpoint:
        assert checkpoint.format == "meta"
        model = load_model(checkpoint)
        assert isinstance(model, Llama)
        return model, dict(checkpoint.config)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_shards_are_joined_into_the_model_that_was_cut(tmp_path: Path, shards: int, embedding_axis: int) -> None:
    model = tiny()
    folder = write_meta_folder(
        tmp_path / "meta", meta_tensors(model), PARAMS, shards=shards, embedding_axis=embedding_axis
    )

    joined, _ = opened(folder)

    assert all(torch.equal(value, model.get_parameter(name)) for name, value in joined.named_parameters())
    assert torch.equal(logits(joined), logits(model))


def test_llama_1_with_what_it_leaves_unsaid(tmp_path: Path) -> None:
    """No vocabulary, no key/value heads, no rope; the tables of rope lie in the file; one file without a number."""
    held = meta_tensors(tiny()) | {"rope.freqs": torch.ones(4)}
    folder = write_meta_folder(tmp_path / "meta", held, PARAMS | {"norm_eps": 1e-6, "multiple_of": 256})
    (folder / "consolidated.00.pth").rename(folder / "consolidated.pth")

    model, config = opened(folder)

    assert torch.equal(logits(model), logits(tiny(replace(CONFIG, rms_norm_eps=1e-6))))
    assert (config["vocab_size"], config["num_key_value_heads"], config["intermediate_size"]) == (96, 8, 128)
    assert (config["max_position_embeddings"], config["rope_theta"]) == (2048, 10_000.0)


def test_llama_2_with_shared_keys(tmp_path: Path) -> None:
    shared = replace(CONFIG, num_key_value_heads=2)
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny(shared)), PARAMS | {"n_kv_heads": 2}, shards=2)

    model, config = opened(folder)

    assert torch.equal(logits(model), logits(tiny(shared)))
    assert config["max_position_embeddings"] == 4096


@pytest.mark.parametrize(
    ("settings", "rope", "context"),
    [
        ({"rope_theta": 1e6}, RopeParameters(rope_theta=1e6), 16_384),
        ({"rope_theta": 500_000.0}, RopeParameters(rope_theta=500_000.0), 8192),
        ({"rope_theta": 500_000.0, "use_scaled_rope": True}, SCALED, 131_072),
        (
            {"rope_theta": 500_000.0, "use_scaled_rope": True, "rope_scaling_factor": 32},
            replace(SCALED, factor=32.0),
            131_072,
        ),
    ],
)
def test_rope_from_code_llama_on(tmp_path: Path, settings: dict[str, Any], rope: RopeParameters, context: int) -> None:
    expected = tiny(replace(CONFIG, rope_parameters=rope))
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(expected), PARAMS | settings, embedding_axis=0)

    model, config = opened(folder)

    assert model.config.rope_parameters == rope
    assert config["max_position_embeddings"] == context
    assert torch.equal(logits(model), logits(expected))


def test_llama_3_2s_factor_is_32_though_its_params_do_not_say_so() -> None:
    from camelid.checkpoint.meta_params import Shapes, config_from_params

    params = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    shapes = Shapes(128256, 2048, 8192, 512, tied=True, dtype="bfloat16")

    config = config_from_params(
        params | {"rope_theta": 5e5, "use_scaled_rope": True, "norm_eps": 1e-5}, shapes, Path("params.json")
    )

    assert config["rope_scaling"]["factor"] == 32.0
    assert (config["bos_token_id"], config["eos_token_id"]) == (128_000, 128_001)


def test_an_output_matrix_equal_to_the_embedding_is_tied(tmp_path: Path) -> None:
    tied = tiny(replace(CONFIG, tie_word_embeddings=True))
    held = meta_tensors(tied)
    for name, shards in (("left out", 1), ("written again", 1), ("in two shards", 2)):
        copy = {} if name == "left out" else {"output.weight": held["tok_embeddings.weight"].clone()}
        folder = write_meta_folder(tmp_path / name, held | copy, PARAMS, shards=shards)

        model, config = opened(folder)

        assert config["tie_word_embeddings"]
        assert torch.equal(logits(model), logits(tied))


def test_an_output_matrix_that_differs_late_is_not_tied(tmp_path: Path) -> None:
    held = meta_tensors(tiny(replace(CONFIG, tie_word_embeddings=True)))
    output = held["tok_embeddings.weight"].clone()
    output[-1, -1] += 1

    _, config = opened(write_meta_folder(tmp_path / "meta", held | {"output.weight": output}, PARAMS))

    assert not config["tie_word_embeddings"]


def test_the_tensors_win_over_params_that_lie(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS | {"n_kv_heads": 4, "vocab_size": 32000})

    with pytest.warns(UserWarning, match=r"n_kv_heads = 4, but the tensors say 8|vocab_size"):
        model, _ = opened(folder)

    assert torch.equal(logits(model), logits(tiny()))


def test_params_nested_under_model(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), {"model": PARAMS})

    assert torch.equal(logits(opened(folder)[0]), logits(tiny()))


def test_tensors_of_one_shard_are_views_into_the_file(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS)

    with closing(open_checkpoint(folder)) as checkpoint:
        name = "model.layers.0.mlp.up_proj.weight"
        assert checkpoint.read(name).data_ptr() == checkpoint.read(name).data_ptr()  # type: ignore[union-attr]


def test_the_dtype_of_the_file_is_kept(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny(dtype=torch.bfloat16)), PARAMS, shards=2)

    with closing(open_checkpoint(folder)) as checkpoint:
        assert checkpoint.config["torch_dtype"] == "bfloat16"
        assert {info.format for info in checkpoint.tensors.values()} == {"bfloat16"}
        assert sum(info.num_bytes for info in checkpoint.tensors.values()) == 2 * tiny().config.num_parameters


def test_a_config_beside_says_what_params_leave_open(tmp_path: Path) -> None:
    import json

    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS)
    beside = replace(CONFIG, max_position_embeddings=77, eos_token_id=(5, 6)).to_hf()
    (folder / "config.json").write_text(json.dumps(beside))

    _, config = opened(folder)

    assert (config["max_position_embeddings"], config["eos_token_id"]) == (77, [5, 6])
    (folder / "config.json").write_text(json.dumps(beside | {"rope_theta": 7.0}))
    with pytest.raises(FormatError, match=r"config\.json and params\.json disagree on rope_parameters"):
        opened(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS, shards=4)
    (folder / "consolidated.02.pth").unlink()

    with pytest.raises(NotFoundError, match=r"consolidated\.02\.pth is missing"):
        open_checkpoint(folder)


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS, shards=2)
    other = write_meta_folder(tmp_path / "other", meta_tensors(tiny()), PARAMS, shards=4)
    shutil.copy(other / "consolidated.01.pth", folder / "consolidated.01.pth")

    with pytest.raises(FormatError, match="do not fit together"):
        open_checkpoint(folder)


def test_a_lost_shard_at_the_end_is_noticed(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS, shards=4)
    (folder / "consolidated.03.pth").unlink()

    with closing(open_checkpoint(folder)) as checkpoint, pytest.raises(FormatError):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"vision_chunk_size": 448}, ConfigError, "a Llama 3.2 Vision model"),
        ({"moe_args": {"num_experts": 16}}, FormatError, "no place in a Llama 4"),
        ({"quantization_args": {"group_size": 32}}, ConfigError, "a quantised release"),
        ({"dim": 32}, FormatError, "do not fit"),
        ({"dim": "64"}, FormatError, "dim is '64'"),
        ({"n_heads": 2**40}, FormatError, "n_heads is"),
        ({"n_heads": 7}, FormatError, "do not fit"),
        ({"n_layers": 16_000}, FormatError, "asks for 16000 layers"),
        ({"norm_eps": -1}, ConfigError, "norm_eps"),
        ({"norm_eps": "small"}, FormatError, "norm_eps is 'small'"),
        ({"rope_theta": [1]}, FormatError, "rope_theta is"),
        ({"rope_theta": 10**400}, FormatError, "rope_theta is"),
        ({"head_dim": "8"}, FormatError, "head_dim is '8'"),
        ({"head_dim": 2.5}, FormatError, "head_dim is"),
        ({"use_scaled_rope": True, "rope_scaling_factor": "x"}, FormatError, "rope_scaling_factor is"),
    ],
)
def test_params_that_cannot_be_honoured(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], what: str
) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS | change)

    with pytest.raises(error, match=what):
        opened(folder)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    held = meta_tensors(tiny()) | {"layers.0.attention.wqkv.weight": torch.ones(4, 4)}

    with pytest.raises(FormatError, match=r"layers\.0\.attention\.wqkv\.weight"):
        open_checkpoint(write_meta_folder(tmp_path / "meta", held, PARAMS))


def test_a_folder_with_a_payload_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "canary"),)

    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS)
    torch.save({"tok_embeddings.weight": Payload()}, folder / "consolidated.00.pth")

    with pytest.raises(FormatError, match=r"consolidated\.00\.pth, byte \d+"):
        open_checkpoint(folder)

    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["params.json", "consolidated.00.pth", "config.json", "generation_config.json"])
def test_a_link_to_somewhere_else_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS)
    (tmp_path / "secret").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")

    def everything() -> None:
        with closing(open_checkpoint(folder)) as checkpoint:
            assert checkpoint.config
            assert checkpoint.generation_config

    with pytest.raises(FormatError, match=f"'{name}' is a link to a file outside"):
        everything()


def test_one_shard_points_to_its_folder(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "meta", meta_tensors(tiny()), PARAMS)

    with pytest.raises(FormatError, match=r"one file of a model(.|\n)*open its folder"):
        open_checkpoint(folder / "consolidated.00.pth")


def test_the_tokenizer_lies_in_the_folder_or_above_it(tmp_path: Path) -> None:
    folder = write_meta_folder(tmp_path / "LLaMA" / "7B", meta_tensors(tiny()), PARAMS)
    with closing(open_checkpoint(folder)) as checkpoint:
        with pytest.raises(TokenizerError, match="neither in the folder nor above"):
            checkpoint.load_tokenizer()

        shutil.copy(LLAMA_2, folder.parent / "tokenizer.model")
        assert checkpoint.load_tokenizer().encode("Hello") == [15043]

        (folder.parent / "tokenizer.model").rename(folder / "tokenizer.model")
        assert checkpoint.load_tokenizer().vocab_size == 32_000
