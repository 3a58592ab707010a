"""torch.compile takes the whole model in one graph."""

from __future__ import annotations

import torch

from camelid.model.attention import PackedContext
from camelid.model.llama import Llama


@torch.inference_mode()
def test_the_forward_pass_is_one_graph(tiny_model: Llama) -> None:
    ids, context = torch.randint(0, 128, (15,)), PackedContext([7, 5, 3])
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")

    hidden = compiled(ids, context.positions(), context)

    torch.testing.assert_close(hidden, tiny_model(ids, context.positions(), context))
