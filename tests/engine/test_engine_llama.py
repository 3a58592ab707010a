"""The engine over the real Llama, against transformers' generate with the same weights."""

from __future__ import annotations

import pytest
import torch

from camelid.base.errors import EngineError
from camelid.codecs import FORMATS
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats
from camelid.model.linear import Matrix
from camelid.model.llama import Llama, LlamaConfig

SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPTS = [[5, 17, 99, 3], [130], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [64, 64]]


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_batch_tokens": 5}, {"cache_tokens": 64, "block_size": 4}, {"decode_graphs": True}],
    ids=["together", "in chunks", "with preemption", "in steps of one form"],
)
def test_greedy_replies_equal_those_of_transformers(limits: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    # Wide weights, so that no two tokens score nearly alike and replies do not repeat themselves.
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, initializer_range=0.3)).eval()
    ours = Llama.from_config(LlamaConfig(**SHAPE))
    ours.load_state_dict(theirs.state_dict())
    expected = [
        theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, len(prompt) :
        ].tolist()
        for prompt in PROMPTS
    ]

    log: list[StepStats] = []
    engine = Engine(ours, on_step=log.append, **limits)
    completions = engine.generate(PROMPTS, SamplingParams(max_tokens=40))

    assert [completion.token_ids for completion in completions] == expected
    assert max(stats.num_sequences for stats in log) > 1
    assert (log[-1].num_preemptions > 0) == ("cache_tokens" in limits)
    assert min(len(set(reply)) for reply in expected) > 10


def test_packed_weights_cannot_be_replaced_and_the_error_says_so() -> None:
    model = Llama.from_config(LlamaConfig(**{**SHAPE, "hidden_size": 96}))
    model.initialize(seed=0)
    projection = model.get_submodule("model.layers.1.mlp.up_proj")
    assert isinstance(projection, Matrix)
    dense = projection.weight
    assert dense is not None
    projection.load_packed(FORMATS.load("q8_0").pack(dense))

    with pytest.raises(EngineError, match=r"no parameter 'model\.layers\.1\.mlp\.up_proj\.weight'") as caught:
        Engine(model).update_weights([("model.layers.1.mlp.up_proj.weight", dense)])

    assert "packed=False" in str(caught.value.hint)
