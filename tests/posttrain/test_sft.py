from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tiny_chat import TALKS, base_model, messages, recipe, tokenizer, write_talks

import camelid
from camelid.base.errors import CamelidError, ChatFormatError, FormatError, NotFoundError, RecipeError
from camelid.base.recipe import load_recipe
from camelid.checkpoint import open_checkpoint
from camelid.checkpoint.lineage import read_lineage, verify_lineage
from camelid.data.conversations import parse_conversation
from camelid.posttrain import METHODS
from camelid.posttrain.sft import SftRecipe, conversations_of, sft, training_settings, with_stop_ids
from camelid.tokenizer.chat import chat_format_for
from camelid.tokenizer.chat_llama3 import Llama3Format
from camelid.train.metrics import read_metrics
from camelid.train.trainer import Trainer


def weights(model_folder: Path) -> bytes:
    return (model_folder / "model.safetensors").read_bytes()


def test_a_model_learns_to_answer_and_its_folder_chats_as_it_is(tmp_path: Path) -> None:
    result = sft(recipe(tmp_path, "training.steps=120", "training.checkpoint_every=120"), tmp_path / "run")
    assert result.finished
    llm = camelid.load(result.checkpoint / "model", device="cpu")
    for question, answer in TALKS:
        reply = llm.generate([{"role": "user", "content": question}], max_tokens=40)
        assert (reply.text, reply.finish_reason) == (answer, "stop")


def test_what_the_model_was_trained_on_is_what_its_folder_renders(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[int, ...]] = []
    forward = Trainer._backward

    def watch(self, number, batch, total_weight):
        start = 0
        for length in batch.lengths:
            if batch.weights_T[start : start + length].any():
                ids = [*batch.ids_T[start : start + length].tolist(), int(batch.targets_T[start + length - 1])]
                seen.append(tuple(ids))
            start += length
        return forward(self, number, batch, total_weight)

    monkeypatch.setattr(Trainer, "_backward", watch)
    result = sft(recipe(tmp_path), tmp_path / "run")
    llm = camelid.load(result.checkpoint / "model", device="cpu")
    assert set(seen) == {tuple(llm.chat_format.render(messages(*talk)).ids) for talk in TALKS}


def test_transformers_renders_the_folder_to_the_ids_it_was_trained_on(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = sft(recipe(tmp_path), tmp_path / "run").checkpoint / "model"
    theirs = transformers.AutoTokenizer.from_pretrained(model)
    chat = chat_format_for(tokenizer(), template=None)
    for talk in TALKS:
        rendered = theirs.apply_chat_template(messages(*talk), return_dict=True, return_assistant_tokens_mask=True)
        ours = chat.render(messages(*talk))
        assert rendered["input_ids"] == ours.ids
        assert [bool(counts) for counts in rendered["assistant_masks"]] == ours.mask


def test_the_folder_brings_template_stop_tokens_and_origin(tmp_path: Path) -> None:
    model = sft(recipe(tmp_path), tmp_path / "run").checkpoint / "model"
    assert (model / "chat_template.jinja").read_text() == Llama3Format.template
    special = tokenizer().special
    stops = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops) == {special.ids["<|eot_id|>"], special.ids["<|eom_id|>"], special.eos}
    lineage = verify_lineage(model)
    parent = read_lineage(tmp_path / "base").files["model.safetensors"].sha256
    assert lineage.facts["parent"] == {"model.safetensors": parent}
    assert lineage.facts["recipe"]["data"]["sources"][0]["files"].endswith("talks.jsonl")


def test_a_models_own_template_is_kept_and_used(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|start_header_id|>{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"  # noqa: E501
    base_model(tmp_path / "base", chat_template=template)
    model = sft(recipe(tmp_path), tmp_path / "run").checkpoint / "model"
    with closing(open_checkpoint(model)) as checkpoint:
        assert checkpoint.chat_template == template


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    given = recipe(tmp_path)
    whole = sft(given, tmp_path / "whole")
    step = Trainer._train_step

    def stopped(self, peak):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, peak)

    monkeypatch.setattr(Trainer, "_train_step", stopped)
    result = sft(given, tmp_path / "run")
    assert (result.step, result.finished) == (5, False)
    monkeypatch.undo()
    result = sft(given, tmp_path / "run")
    assert result.finished
    assert weights(result.checkpoint / "model") == weights(whole.checkpoint / "model")


KILLED = """
import os, signal, sys
from pathlib import Path
from camelid.base.recipe import load_recipe
from camelid.posttrain.sft import SftRecipe, sft
from camelid.train.trainer import Trainer

step = Trainer._train_step

def deadly(self, peak):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, peak)

Trainer._train_step = deadly
sft(load_recipe(SftRecipe, Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_run_that_was_killed_leaves_nothing_in_the_way_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    write_talks(tmp_path / "held.jsonl", TALKS[:1])
    looks = (f'data.validation=["{tmp_path}/held.jsonl"]', "training.validate_every=2", "training.sample_every=1")
    given = recipe(tmp_path, *looks, 'training.sample_prompts=["Who are you?"]', "training.sample_tokens=4")
    whole = sft(given, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "whole" / "recipe.toml"), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(camelid.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5

    result = sft(given, tmp_path / "run")
    assert weights(result.checkpoint / "model") == weights(whole.checkpoint / "model")
    assert (tmp_path / "run" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    curves = [
        [(s.step, s.loss, s.validation_loss) for s in read_metrics(tmp_path / folder / "metrics.jsonl")]
        for folder in ("run", "whole")
    ]
    assert curves[0] == curves[1]


def test_the_run_folder_holds_a_recipe_that_gives_the_same_run(tmp_path: Path) -> None:
    given = load_recipe(
        SftRecipe,
        None,
        [
            *(f"model={tmp_path / 'base'}", "epochs=2.0", "data.batch_size=2", "data.sequence_length=64"),
            *(f'data.sources=["{tmp_path}/talks.jsonl", {{files="{tmp_path}/talks.jsonl", repeats=2}}]', "device=cpu"),
            "training.schedule.warmup_steps=1",
        ],
    )
    recipe(tmp_path)
    sft(given, tmp_path / "run")
    assert load_recipe(SftRecipe, tmp_path / "run" / "recipe.toml") == given


def test_epochs_set_the_number_of_steps(tmp_path: Path) -> None:
    given = load_recipe(
        SftRecipe,
        None,
        [
            *(f"model={tmp_path}", 'data.sources=["talks"]', "data.batch_size=4"),
            *("training.accumulation=2", "training.schedule.warmup_steps=3", "epochs=1.5"),
        ],
    )
    assert training_settings(given, num_rows=33).steps == 7  # 49.5 rows, 8 a step


def test_the_report_says_what_became_of_the_conversations(tmp_path: Path, capsys) -> None:
    write_talks(tmp_path / "talks.jsonl", [*TALKS, ("Tell me all.", "word " * 200)])
    sft(recipe(tmp_path, "data.too_long=truncate"), tmp_path / "run")
    assert "conversations: 4 conversations, 1 longer than 64 tokens and truncated" in capsys.readouterr().err


def test_sources_are_read_in_order_and_repeated(tmp_path: Path) -> None:
    write_talks(tmp_path / "b.jsonl", TALKS[:1])
    write_talks(tmp_path / "a.jsonl", TALKS[1:2])
    write_talks(tmp_path / "c.json", TALKS[2:])
    sources = f'data.sources=["{tmp_path}/*.jsonl", {{files="{tmp_path}/c.json", repeats=2}}]'
    given = load_recipe(SftRecipe, None, ["model=m", sources])
    first = [conversation.messages[0]["content"] for conversation in conversations_of(given.data.sources)]
    assert first == [TALKS[i][0] for i in (1, 0, 2, 2)]


def test_held_out_conversations_are_measured(tmp_path: Path) -> None:
    write_talks(tmp_path / "held.jsonl", TALKS[:1])
    sft(recipe(tmp_path, f'data.validation=["{tmp_path}/held.jsonl"]'), tmp_path / "run")
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [s.validation_loss is not None for s in steps] == [False] * 7 + [True]


def test_stop_tokens_are_added_to_those_there_are() -> None:
    assert with_stop_ids({"eos_token_id": 2, "top_p": 0.9}, [7, 8]) == {"eos_token_id": [7, 8, 2], "top_p": 0.9}
    assert with_stop_ids({"eos_token_id": [2, 7]}, [7]) == {"eos_token_id": [7, 2]}
    assert with_stop_ids({}, [7]) == {"eos_token_id": [7]}


def test_the_method_is_found_by_its_name() -> None:
    method = METHODS.load("sft")
    assert (method.recipe, method.train) == (SftRecipe, sft)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["epochs=1.0"], RecipeError, "exclude each other"),
        (["epochs=inf"], RecipeError, "'epochs': input should be less than or equal to"),
        (["training.seed=9223372036854775808"], RecipeError, "'training.seed': input should be less than"),
        (["data.sources=[]"], RecipeError, "data.sources"),
        (['data.sources=["nowhere/*.jsonl"]'], NotFoundError, "no file of conversations matches"),
        (["data.batch_size=0"], RecipeError, "data.batch_size"),
        (["data.too_long=cut"], RecipeError, "'truncate' or 'drop'"),
        (["data.sequence_length=4096"], RecipeError, "more than the 128 positions"),
        (["data.sequence_length=4"], FormatError, "3 are longer than a row"),
        (["model=nowhere"], NotFoundError, "nowhere"),
        (["chat_format=llama9"], NotFoundError, "no chat format named 'llama9'"),
        (["chat_format=chatml"], ChatFormatError, "needs the control token <|im_end|>"),
        (["training.schedule.warmup_steps=9"], RecipeError, "exceed the 8 steps"),
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], error: type[CamelidError], message: str
) -> None:
    with pytest.raises(error) as caught:
        sft(recipe(tmp_path, *overrides), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_epochs_too_few_for_the_warmup_are_refused(tmp_path: Path) -> None:
    short = recipe(tmp_path).model_copy(update={"epochs": 0.3})
    with pytest.raises(RecipeError, match="warmup_steps 2 and decay_steps 0 exceed the 1 steps"):
        sft(short, tmp_path / "run")


@pytest.mark.parametrize(
    ("rows", "message", "line"),
    [
        ("", "there is no conversation in it ({folder}/talks.jsonl)", None),
        ("\n\n", "there is no conversation in it ({folder}/talks.jsonl)", None),
        ('{"messages": []}\n', "messages", 1),
        (
            '{"messages": [{"role": "user", "content": "Hi"}]}\n{"text": "a"}\n',
            "no conversation: its keys are 'text'",
            2,
        ),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n\n{"messages": \n', "no JSON", 3),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n', "of 1 conversations none is left", None),
        ('{"messages": [{"role": "usr", "content": "Hi"}]}\n', "usr", 1),
    ],
)
def test_bad_conversations_are_refused_by_file_and_line(
    tmp_path: Path, rows: str, message: str, line: int | None
) -> None:
    (tmp_path / "talks.jsonl").write_text(rows)
    with pytest.raises(FormatError) as caught:
        sft(recipe(tmp_path), tmp_path / "run")
    assert message.replace("{folder}", str(tmp_path)) in str(caught.value)
    if line is not None:
        assert f"talks.jsonl:{line}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_conversation_that_the_format_cannot_express_is_named_by_its_line(tmp_path: Path) -> None:
    calls = [{"id": str(i), "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": calls}]}
    parse_conversation(row, "here")
    write_talks(tmp_path / "talks.jsonl")
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ChatFormatError, match=r"talks\.jsonl:4, messages\[1\]"):
        sft(recipe(tmp_path), tmp_path / "run")


def test_the_run_folder_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    sft(recipe(tmp_path), tmp_path / "run")
    write_talks(tmp_path / "talks.jsonl", TALKS[:2])
    with pytest.raises(RecipeError, match="belongs to another run: data was"):
        sft(recipe(tmp_path), tmp_path / "run")


def test_the_loss_is_taken_at_the_replies_and_their_ends_alone(tmp_path: Path) -> None:
    sft(recipe(tmp_path, "data.sequence_length=128"), tmp_path / "run")  # one row holds them all
    chat = chat_format_for(tokenizer(), template=None)
    replies = [len(tokenizer().encode(answer)) + len(["<|eot_id|>"]) for _, answer in TALKS]
    assert sum(sum(chat.render(messages(*talk)).mask) for talk in TALKS) == sum(replies)
    assert {s.target_tokens for s in read_metrics(tmp_path / "run" / "metrics.jsonl")} == {sum(replies)}
