"""Weights that are dense or packed, with nobody else the wiser."""

from __future__ import annotations

import copy

import pytest
import torch

from camelid.base.errors import FormatError, NotFoundError
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.model.attention import PackedContext
from camelid.model.layers import Embedding
from camelid.model.linear import Linear, Matrix
from camelid.model.llama import Llama, LlamaConfig


def packed_and_dense(rows: int, columns: int, name: str = "q8_0") -> tuple[PackedTensor, torch.Tensor]:
    codec = FORMATS.load(name)
    packed = codec.pack(torch.randn(rows, columns))
    return packed, codec.unpack(packed)


@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_projection(bias: bool) -> None:
    linear = Linear(32, 5, bias=bias)
    torch.nn.init.normal_(linear.weight)
    x = torch.randn(3, 32)
    expected = x @ linear.weight.T
    if bias:
        torch.nn.init.normal_(linear.bias)
        expected = expected + linear.bias

    torch.testing.assert_close(linear(x), expected)
    assert set(linear.state_dict()) == ({"weight", "bias"} if bias else {"weight"})


@pytest.mark.parametrize("name", ["q8_0", "q4_1"])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_a_packed_projection_multiplies_with_what_the_blocks_stand_for(name: str, num_tokens: int) -> None:
    packed, dense = packed_and_dense(48, 64, name)
    linear = Linear(64, 48, bias=True)
    torch.nn.init.normal_(linear.bias)
    x = torch.randn(num_tokens, 64)

    linear.load_packed(packed)

    expected = x @ dense.T + linear.bias
    # A native kernel may quantise activations to 8 bits, as ggml's does.
    assert (linear(x) - expected).abs().max() <= 0.02 * expected.abs().max()
    assert linear.weight is None
    assert set(linear.state_dict()) == {"bias"}


def test_a_packed_embedding_looks_up_and_scores() -> None:
    packed, dense = packed_and_dense(50, 32)
    embedding = Embedding(50, 32)
    embedding.load_packed(packed)
    ids, hidden = torch.tensor([0, 49, 7, 7]), torch.randn(2, 32)

    torch.testing.assert_close(embedding(ids), dense[ids])
    scores = hidden @ dense.T
    assert (embedding.multiply(hidden) - scores).abs().max() <= 0.02 * scores.abs().max()


def test_blocks_of_another_shape_are_refused() -> None:
    packed, _ = packed_and_dense(48, 64)

    with pytest.raises(FormatError, match=r"\(48, 64\) where \(64, 48\) belongs"):
        Linear(48, 64).load_packed(packed)


def test_an_unknown_format_is_refused() -> None:
    packed, _ = packed_and_dense(48, 64)

    with pytest.raises(NotFoundError, match="q8_9"):
        Linear(64, 48).load_packed(PackedTensor(packed.data, "q8_9", packed.shape))


def test_packed_bytes_survive_copies_and_changes_of_dtype() -> None:
    packed, dense = packed_and_dense(48, 64)
    linear = Linear(64, 48)
    linear.load_packed(packed)

    copied = copy.deepcopy(linear).bfloat16()

    assert copied.packed is not None
    assert torch.equal(FORMATS.load("q8_0").unpack(copied.packed), dense)


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_a_packed_model_computes_what_its_unpacked_weights_do(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=tied,
    )
    dense, packed = Llama.from_config(config), Llama.from_config(config)
    dense.initialize(seed=0)
    packed.load_state_dict(dense.state_dict())
    codec = FORMATS.load("q8_0")
    for ours, theirs in zip(dense.modules(), packed.modules(), strict=True):
        if isinstance(ours, Matrix):
            blocks = codec.pack(ours.weight)
            ours.weight.copy_(codec.unpack(blocks))
            theirs.load_packed(blocks)
    ids, context = torch.randint(0, 96, (40,)), PackedContext([40])

    expected = dense.logits(dense(ids, context.positions(), context))
    logits = packed.logits(packed(ids, context.positions(), context))

    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() <= 0.02 * expected.abs().max()

    in_bf16 = packed.bfloat16()(ids, context.positions(), context)
    assert in_bf16.dtype == torch.bfloat16
    assert (packed.logits(in_bf16) - expected).abs().max() <= 0.1 * expected.abs().max()
