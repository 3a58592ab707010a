"""A block of a Llama in one native call against the same kernels one by one, to the last bit."""

from __future__ import annotations

import pytest
import torch

from camelid.engine.engine import Engine
from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.engine.params import SamplingParams
from camelid.kernels.attention import vector_width
from camelid.kernels.block import Workspace
from camelid.model import llama as llama_module
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.lora import LoraAdapter, LoraConfig

pytestmark = pytest.mark.skipif(
    vector_width() is None, reason="no native kernel was built, or this processor runs none"
)


def new_model(heads: tuple[int, int], head_dim: int, hidden: int, width: int, **options: bool) -> Llama:
    config = LlamaConfig(
        vocab_size=200, hidden_size=hidden, intermediate_size=width, num_hidden_layers=3,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=head_dim,
        max_position_embeddings=512, initializer_range=0.1, **options,
    )  # fmt: skip
    model = Llama.from_config(config)
    model.initialize(seed=0)
    return model.eval()


class Calls:
    """Counts the calls of the native block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        native = llama_module.transformer_block

        def counted(*args: object, **options: object) -> torch.Tensor:
            self.num += 1
            return native(*args, **options)

        monkeypatch.setattr(llama_module, "transformer_block", counted)


SHAPES = [((6, 6), 48, 288, 768), ((9, 3), 64, 576, 96), ((4, 1), 32, 48, 144)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "spans", [[(1, 0)], [(1, 40)], [(1, 5), (1, 90), (1, 3)], [(130, 0), (1, 70), (9, 200)]], ids=str
)
def test_a_block_has_the_bits_of_its_kernels(
    shape: tuple[tuple[int, int], int, int, int], spans: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, model = Calls(monkeypatch), new_model(*shape)
    num_tokens, blocks = sum(new for new, _ in spans), list(range(60, 0, -1))
    tables = [[blocks.pop() for _ in range(-(-(new + cached) // 16))] for new, cached in spans]
    outs = []
    for in_one_call in (True, False):
        if not in_one_call:
            monkeypatch.setattr(PagedContext, "paged_place", lambda *_: None)
        generator = torch.Generator().manual_seed(0)
        cache = PagedKVCache(model.config, 61, 16, device=torch.device("cpu"), dtype=torch.float32)
        for _, tensor in cache.tensors():
            tensor.normal_(generator=generator)
        with torch.inference_mode():
            context = PagedContext(cache, [new for new, _ in spans], [cached for _, cached in spans], tables)
            ids = torch.randint(200, (num_tokens,), generator=generator)
            outs.append([model(ids, context.positions, context), *(tensor for _, tensor in cache.tensors())])

    assert calls.num == 3
    assert all(torch.equal(one, other) for one, other in zip(*outs, strict=True))


def test_what_is_more_than_plain_products_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, params = Calls(monkeypatch), SamplingParams(max_tokens=2, ignore_eos=True)
    plain = new_model((2, 2), 32, 64, 96)
    Engine(plain).generate([[1, 2, 3]], params)
    assert calls.num == 2 * 3

    engine = Engine(plain)
    engine.add_adapter("a", LoraAdapter.new(plain, LoraConfig()))
    engine.generate([[1, 2, 3]], params)
    Engine(plain, cache_format="q8").generate([[1, 2, 3]], params)
    Engine(new_model((2, 2), 32, 64, 96, attention_bias=True)).generate([[1, 2, 3]], params)
    Engine(new_model((2, 2), 32, 64, 100)).generate([[1, 2, 3]], params)
    Engine(new_model((2, 2), 12, 64, 96)).generate([[1, 2, 3]], params)
    with torch.no_grad():
        plain.logits(torch.zeros(1, 64))
    assert calls.num == 2 * 3


def test_a_module_that_is_more_than_its_class_says_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, seen = Calls(monkeypatch), []
    for path in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "mlp.down_proj"):
        model = new_model((2, 2), 32, 64, 96)
        model.get_submodule(f"model.layers.1.{path}").register_forward_pre_hook(lambda *_: seen.append(1))
        Engine(model).generate([[1, 2, 3]], SamplingParams(max_tokens=1, ignore_eos=True))
        assert seen.pop()
        assert calls.num == 2
        calls.num = 0
    model = new_model((2, 2), 32, 64, 96)
    model.get_submodule("model.layers.0.post_attention_layernorm").eps = 10.0
    Engine(model).generate([[1, 2, 3]], SamplingParams(max_tokens=1, ignore_eos=True))
    assert calls.num == 2


def test_a_workspace_is_kept_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camelid.kernels.block.KEPT", 100)
    workspace = Workspace()
    kept = workspace.of(90)
    assert workspace.of(60).data_ptr() == kept.data_ptr()
    assert len(workspace.of(101)) == 101
    assert workspace.of(90).data_ptr() == kept.data_ptr()
