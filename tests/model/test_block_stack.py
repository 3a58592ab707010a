"""Whatever happens to a model between two steps takes effect in the next one, native or not."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from types import MethodType

import pytest
import torch
from mllama_pair import IMAGE, TEXT, VISION
from stack_steps import Calls, ModuleByModule, equal, needs_kernels, new_model, step
from torch import nn
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrize

from camelid.codecs import FORMATS
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model import block_stack
from camelid.model.layers import FeedForward, RMSNorm
from camelid.model.llama import Llama, TransformerBlock
from camelid.model.lora import LoraAdapter, LoraConfig
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.model.rotary import AdjacentRotaryEmbedding

pytestmark = needs_kernels

SPANS = [(5, 0), (1, 20)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def block(model: Llama, number: int = 1) -> TransformerBlock:
    found = model.model.layers[number]
    assert isinstance(found, TransformerBlock)
    return found


def noise(like: torch.Tensor | None) -> torch.Tensor:
    assert like is not None
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)) * 0.1


def give_new_data(parameter: nn.Parameter | None, data: torch.Tensor) -> None:
    assert parameter is not None
    parameter.data = data


def transpose(model: Llama) -> None:
    """Other strides at the same address."""
    parameter = block(model).self_attn.q_proj.weight
    assert parameter is not None
    address = parameter.data_ptr()
    parameter.data = parameter.data.T
    assert parameter.data_ptr() == address


def scale_in_place(model: Llama) -> None:
    with torch.no_grad():
        block(model).mlp.up_proj.weight.mul_(2)  # type: ignore[union-attr]


def round_and_return(model: Llama) -> None:
    model.bfloat16().float()


def pack(model: Llama) -> None:
    projection = block(model).mlp.up_proj
    projection.load_packed(FORMATS.load("q8_0").pack(projection.dense()))


def exchange(model: Llama) -> None:
    new = FeedForward(64, 96)
    for projection in (new.gate_proj, new.up_proj, new.down_proj):
        projection.load_dense(noise(projection.weight))
    block(model).mlp = new


class Doubled(FeedForward):
    def forward(self, x_TE: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x_TE)


def exchange_for_more(model: Llama) -> None:
    new = Doubled(64, 96)
    new.load_state_dict(block(model).mlp.state_dict())
    block(model).mlp = new


def double_forward(module: nn.Module) -> None:
    own = module.forward
    module.forward = MethodType(lambda _, *args: 2 * own(*args), module)  # type: ignore[assignment]


def double_call(module: nn.Module) -> None:
    """As `module.compile()` replaces it."""
    module._compiled_call_impl = lambda *args: 2 * module._call_impl(*args)


def give_bias(model: Llama, bias: torch.Tensor) -> None:
    block(model).self_attn.o_proj.bias = bias  # type: ignore[assignment]


class Doubles(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def exchange_two_blocks(model: Llama) -> None:
    first, second, third = model.model.layers
    model.model.layers = nn.ModuleList([second, first, third])


def turn_other_pairs(model: Llama) -> None:
    model.model.rotary = AdjacentRotaryEmbedding(model.config.rope_parameters, model.config.head_dim)


STILL_NATIVE: dict[str, Callable[[Llama], object]] = {
    "another weight": lambda m: block(m).mlp.up_proj.load_dense(noise(block(m).mlp.up_proj.weight)),
    "another norm's weight": lambda m: give_new_data(m.model.norm.weight, noise(m.model.norm.weight)),
    "other data": lambda m: give_new_data(block(m).mlp.up_proj.weight, noise(block(m).mlp.up_proj.weight)),
    "a change in place": scale_in_place,
    "rounded and in fp32 again": round_and_return,
    "another module of the same kind": exchange,
    "blocks in another order": exchange_two_blocks,
    "fewer blocks": lambda m: m.model.layers.pop(1),
    "another eps": lambda m: setattr(block(m).post_attention_layernorm, "eps", 10.0),
    "another last eps": lambda m: setattr(m.model.norm, "eps", 10.0),
    "another scale": lambda m: setattr(block(m).self_attn, "scale", 3.0),
    "another part of the cache": lambda m: setattr(block(m).self_attn, "layer", 0),
}
NO_LONGER: dict[str, Callable[[Llama], object]] = {
    "packed": pack,
    "transposed": transpose,
    "a module of a subclass": exchange_for_more,
    "a forward of its own": lambda m: double_forward(block(m).mlp),
    "a projection's own forward": lambda m: double_forward(block(m).self_attn.v_proj),
    "a bias": lambda m: give_bias(m, nn.Parameter(torch.ones(64))),
    "a bias that is no parameter": lambda m: give_bias(m, torch.ones(64)),
    "a parametrization": lambda m: parametrize.register_parametrization(block(m).self_attn.k_proj, "weight", Doubles()),
    "a call of its own": lambda m: double_call(block(m)),
    "another rotation": turn_other_pairs,
}


@pytest.mark.parametrize("change", [*STILL_NATIVE, *NO_LONGER])
def test_a_change_takes_effect_at_the_next_step(change: str, calls: Calls) -> None:
    model = new_model()
    before = step(model, SPANS)
    assert calls.taken() == 1

    (STILL_NATIVE | NO_LONGER)[change](model)
    after = step(model, SPANS)

    assert calls.taken() == (change in STILL_NATIVE)
    assert equal(after, step(model, SPANS, context_class=ModuleByModule))
    assert not equal(after, before)


def paths() -> Iterator[str]:
    yield "model.norm"
    yield from (path for path, _ in new_model().named_modules() if path.startswith("model.layers.1"))


@pytest.mark.parametrize("path", list(paths()))
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_every_module_are_called_while_they_are_there(path: str, kind: str, calls: Calls) -> None:
    model, seen = new_model(), []
    before = step(model, SPANS)
    assert calls.taken() == 1

    hook = getattr(model.get_submodule(path), kind)(lambda *_: seen.append(1))
    hooked = step(model, SPANS)
    assert calls.taken() == 0
    assert seen == [1]
    assert equal(before, hooked)

    hook.remove()
    assert equal(before, step(model, SPANS))
    assert calls.taken() == 1


@pytest.mark.parametrize("kind", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hooks_of_all_modules_at_once_are_called(kind: str, calls: Calls) -> None:
    model, seen = new_model(), []
    before = step(model, SPANS)
    assert calls.taken() == 1

    hook = getattr(all_modules, kind)(lambda module, *_: seen.append(module))
    try:
        hooked = step(model, SPANS)
    finally:
        hook.remove()

    assert calls.taken() == 0
    assert set(seen) >= {module for layer in model.model.layers for module in layer.modules()}
    assert equal(before, hooked)


def test_a_step_of_another_thread_sees_new_blocks_while_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    step(model, SPANS)
    exchange_two_blocks(model)
    beside: list[list[torch.Tensor]] = []

    class SlowlyListed(block_stack._Listed):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if not beside and threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: beside.append(step(model, SPANS)))
                thread.start()
                thread.join()

    monkeypatch.setattr(block_stack, "_Listed", SlowlyListed)
    found = step(model, SPANS)

    expected = step(model, SPANS, context_class=ModuleByModule)
    assert equal(found, expected)
    assert equal(beside[0], expected)


def test_an_adapter_s_hook_counts_for_its_steps(calls: Calls) -> None:
    model, params = new_model(), SamplingParams(max_tokens=2, ignore_eos=True, logprobs=True)
    adapter = LoraAdapter.new(model, LoraConfig())
    for change in adapter.changes.values():
        nn.init.normal_(change.b, generator=torch.Generator().manual_seed(0))
    engine = Engine(model)

    def scores(**options: str) -> list[float]:
        [completion] = engine.generate([[1, 2, 3]], SamplingParams(**{**vars(params), **options}))
        return [logprob.logprob for logprob in completion.logprobs]

    plain = scores()
    assert calls.taken() == 2
    engine.add_adapter("a", adapter)
    assert scores(adapter="a") != plain
    assert scores() == plain
    assert calls.taken() == 0
    engine.remove_adapter("a")
    assert scores() == plain
    assert calls.taken() == 2


def test_other_shapes_formats_and_kinds_go_module_by_module(calls: Calls) -> None:
    plain, params = new_model(), SamplingParams(max_tokens=2, ignore_eos=True)
    Engine(plain, cache_format="q8").generate([[1, 2, 3]], params)
    Engine(plain, batch_invariant=True).generate([[1, 2, 3]], params)
    assert calls.taken() == 2, "the kernels are batch-invariant by themselves"
    Engine(new_model(attention_bias=True)).generate([[1, 2, 3]], params)
    Engine(new_model(width=100)).generate([[1, 2, 3]], params)
    Engine(new_model(head_dim=12)).generate([[1, 2, 3]], params)
    step(copy.deepcopy(plain).bfloat16(), SPANS, dtype=torch.bfloat16)
    assert calls.taken() == 0


def test_with_gradients_every_module_is_called(calls: Calls) -> None:
    model = new_model()
    expected = step(model, SPANS)[0]
    assert calls.taken() == 1
    hidden = step(model, SPANS, gradients=True)[0]
    assert calls.taken() == 0
    assert hidden.requires_grad
    torch.testing.assert_close(hidden, expected)


def test_a_copy_goes_by_its_own_modules(calls: Calls) -> None:
    model = new_model()
    before = step(model, SPANS)
    other = copy.deepcopy(model)
    scale_in_place(other)
    changed = step(other, SPANS)
    assert equal(step(model, SPANS), before)
    assert equal(changed, step(other, SPANS, context_class=ModuleByModule))
    assert not equal(changed, before)
    assert calls.taken() == 3
    block(other).register_forward_hook(lambda *_: None)
    assert equal(step(other, SPANS), changed)
    assert calls.taken() == 0


def test_a_norm_of_another_width_is_refused_as_torch_refuses_it(calls: Calls) -> None:
    model = new_model()
    block(model).input_layernorm = RMSNorm(48, 1e-5)
    with pytest.raises((AssertionError, RuntimeError)):
        step(model, SPANS)
    assert calls.taken() == 0


def test_where_nobody_has_images_the_blocks_that_attend_to_them_are_passed_over(calls: Calls) -> None:
    transformers = pytest.importorskip("transformers")
    text = {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1}
    theirs = transformers.MllamaConfig(text_config=text, vision_config=VISION, image_token_index=IMAGE)
    model = Mllama.from_config(MllamaConfig.from_hf(theirs.to_dict())).eval()
    model.initialize(seed=0)

    in_one_call = step(model, SPANS, [1, 1])

    assert calls.taken() == 1
    assert equal(in_one_call, step(model, SPANS, [1, 1], context_class=ModuleByModule))
