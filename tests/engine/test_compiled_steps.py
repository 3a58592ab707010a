"""Compiled decoding steps say what plain ones say, and are compiled once for one sequence and once for more."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_engine_model import new_tiny_model

from camelid.base.errors import EngineError
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.llama4 import Llama4, Llama4Config

SHAPE = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.slow  # torch's compiler takes half a minute
def test_compiled_replies_are_the_plain_ones_and_nothing_is_compiled_twice() -> None:
    shape = {**SHAPE, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    model = Llama.from_config(LlamaConfig(**shape, initializer_range=0.2))
    model.initialize(seed=0)
    prompts = [[7, 1, 5], [9] * 40, list(range(60)), [3], [11, 12]]
    each = [SamplingParams(max_tokens=40 - 7 * n) for n in range(5)]
    long = [[*range(90), *range(90), *range(90), n] for n in range(3)]
    expected = [[r.token_ids for r in Engine(model).generate(p, each[: len(p)])] for p in (prompts, long)]
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    engine = Engine(model, compile=True)

    assert [reply.token_ids for reply in engine.generate(prompts, each)] == expected[0]
    assert counts["unique_graphs"] == 2
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert [reply.token_ids for reply in engine.generate(long, each[:3])] == expected[1]
    assert counts["unique_graphs"] == 2


def test_a_model_that_decides_within_a_step_is_not_compiled() -> None:
    model = Llama4.from_config(Llama4Config(**SHAPE, intermediate_size=24, intermediate_size_mlp=40, head_dim=8))
    with pytest.raises(EngineError, match="Llama4 decides within a step what to run"):
        Engine(model, compile=True)


def test_torchs_compiler_is_imported_only_where_it_is_asked_for() -> None:
    """It takes more than a second."""
    code = (
        "import sys, torch\n"
        "from tiny_engine_model import new_tiny_model\n"
        "from camelid.engine.engine import Engine\n"
        "from camelid.engine.params import SamplingParams\n"
        "Engine(new_tiny_model(), decode_graphs=True).generate([[1, 2]], SamplingParams(max_tokens=3))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    paths = [path for path in sys.path if path]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], check=True)


def test_what_cannot_be_compiled_is_an_error_of_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(step: object, **options: object) -> object:
        def run(inputs: torch.Tensor) -> torch.Tensor:
            raise BackendCompilerFailed(broken, RuntimeError("no compiler was found"), None)

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(EngineError, match=r"can't be compiled: .*no compiler was found") as caught:
        Engine(new_tiny_model(), compile=True).generate([[1, 2]], SamplingParams(max_tokens=3))
    assert "without compile" in str(caught.value.hint)
