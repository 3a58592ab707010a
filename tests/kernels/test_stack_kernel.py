"""All blocks in one native call against the same kernels one by one, to the last bit, and against torch."""

from __future__ import annotations

import pytest
import torch
from stack_steps import Calls, ModuleByModule, Spans, equal, needs_kernels, new_model, step

from camelid import kernels
from camelid.kernels.attention import vector_width
from camelid.kernels.stack import Workspace
from camelid.model import block_stack

SHAPES = [((6, 6), 48, 288, 768), ((9, 3), 64, 576, 96), ((4, 1), 32, 48, 144)]
SPANS = [[(1, 0)], [(1, 40)], [(1, 5), (1, 90), (1, 3)], [(130, 0), (1, 70), (9, 200)]]


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spans", SPANS, ids=str)
def test_a_stack_has_the_bits_of_its_kernels(
    shape: tuple[tuple[int, int], int, int, int], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, model = Calls(monkeypatch), new_model(*shape)

    in_one_call = step(model, spans)

    assert calls.taken() == 1
    assert equal(in_one_call, step(model, spans, context_class=ModuleByModule))
    assert calls.taken() == 0


@needs_kernels
@pytest.mark.parametrize("spans", SPANS, ids=str)
@pytest.mark.parametrize("wanted", [None, 0, 1], ids=["all", "none", "last"])
def test_a_stack_is_what_torch_makes_of_the_modules(
    spans: Spans, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, model, wanted_lens = Calls(monkeypatch), new_model(), None if wanted is None else [wanted] * len(spans)
    in_one_call = step(model, spans, wanted_lens)
    monkeypatch.setattr("camelid.kernels.instruction_set", lambda: None)
    assert vector_width() is None

    by_torch = step(model, spans, wanted_lens)

    assert calls.taken() == 1
    for ours, theirs in zip(in_one_call, by_torch, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("name", [name for name in kernels.instruction_sets() if name != "portable"])
def test_every_instruction_set_runs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spans = new_model((4, 1), 32, 48, 144), [(70, 0), (1, 30), (9, 40)]
    expected, native = step(model, spans, [0, 1, 3]), block_stack.transformer_stack
    monkeypatch.setattr(block_stack, "transformer_stack", lambda *args: native(*args, instruction_set=name))
    for ours, theirs in zip(step(model, spans, [0, 1, 3]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_workspace_is_kept_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camelid.kernels.stack.KEPT", 100)
    workspace = Workspace()
    kept = workspace.of(90)
    assert workspace.of(60).data_ptr() == kept.data_ptr()
    assert len(workspace.of(101)) == 101
    assert workspace.of(90).data_ptr() == kept.data_ptr()
