"""What fine-tuning will take, said before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_chat

from camelid.base.recipe import load_recipe
from camelid.checkpoint import open_checkpoint
from camelid.data.conversation_batches import ConversationBatches
from camelid.model.llama_config import LlamaConfig
from camelid.posttrain.plan import plan_sft
from camelid.posttrain.sft import SftRecipe, conversations_of
from camelid.tokenizer.chat import chat_format_for


@pytest.fixture
def recipe(tmp_path: Path) -> SftRecipe:
    talks = [{"messages": tiny_chat.messages(*talk)} for talk in tiny_chat.TALKS] * 20
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    model = tiny_chat.base_model(tmp_path / "model")
    overrides = [f"model='{model}'", f"data.sources=['{tmp_path}/talks.jsonl']", "epochs=3.0", "device='cpu'"]
    return load_recipe(SftRecipe, None, [*overrides, "data.sequence_length=64", "data.batch_size=2"])


def test_epochs_are_counted_with_the_models_own_tokenizer(recipe: SftRecipe) -> None:
    chat = chat_format_for(open_checkpoint(recipe.model).load_tokenizer(), template=None)
    batches = ConversationBatches(conversations_of(recipe.data.sources), chat, sequence_length=64, batch_size=2, seed=0)
    steps = -(-3 * batches.num_rows // 2)
    assert plan_sft(recipe).tokens == steps * 2 * 64


def test_a_model_that_is_not_there_yet_is_planned_for_by_the_texts_size(recipe: SftRecipe) -> None:
    config = LlamaConfig.from_hf(dict(open_checkpoint(recipe.model).config))
    plan = plan_sft(recipe.model_copy(update={"model": Path("not/there/yet")}), config=config)
    content = sum(len(text) for talk in tiny_chat.TALKS for text in talk) * 20
    assert 3 * content / 4 < plan.tokens < 3 * content * 2
