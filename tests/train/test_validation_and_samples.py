"""What is looked at while a model trains leaves no trace in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_run import TinyBatches, settings, tiny_model
from torch import nn

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import ChatFormatError, FormatError, RecipeError, TrainingError
from camelid.model.attention import PackedContext
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer.chat_chatml import ChatMLFormat
from camelid.train.checkpointing import Companions
from camelid.train.metrics import read_metrics
from camelid.train.report import write_report
from camelid.train.samples import read_samples
from camelid.train.settings import TrainSettings
from camelid.train.trainer import Trainer
from camelid.train.validation import held_out_loss

EVERY_STEP = {"validate_every": 1, "sample_every": 1, "sample_prompts": ("ab", "c"), "sample_tokens": 5}


class HeldOut:
    """Batches of different sizes that the tiny run does not see."""

    def in_order(self):
        for number, lengths in enumerate([(24, 16), (24,), (8, 8, 8)]):
            yield TinyBatches(lengths).batch(1000 + number)


class UnsavedTokenizer(ByteTokenizer):
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


class NoisyLlama(Llama):
    """Draws a random number in each forward pass that trains, as dropout would."""

    def forward(self, ids_T, positions_T, context):
        hidden_TE = super().forward(ids_T, positions_T, context)
        return nn.functional.dropout(hidden_TE, 0.1, training=self.training)


def speaking_model() -> Llama:
    config = LlamaConfig(
        vocab_size=ByteTokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = NoisyLlama.from_config(config)
    model.initialize(7)
    return model


def trainer(folder: Path, *, template: str | None = None, validation=None, **changes) -> Trainer:
    given = TrainSettings.model_validate({**settings().model_dump(), **changes})
    companions = Companions(tokenizer=UnsavedTokenizer(), chat_template=template)
    return Trainer(speaking_model(), TinyBatches(), given, folder, validation=validation, companions=companions)


def final_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.run()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    "changes", [{}, {"activation_checkpointing": True}, {"sample_temperature": 1.0}], ids=["plain", "frugal", "warm"]
)
def test_looking_changes_no_bit_of_the_weights(tmp_path: Path, changes: dict) -> None:
    watched = final_weights(trainer(tmp_path / "watched", validation=HeldOut(), **EVERY_STEP, **changes))
    alone = final_weights(trainer(tmp_path / "alone"))
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_the_held_out_loss_is_the_mean_over_tokens_not_batches() -> None:
    model = tiny_model()
    nats = weight = 0.0
    for batch in HeldOut().in_order():
        logits = model.logits(
            model(torch.from_numpy(batch.ids_T), torch.from_numpy(batch.positions_T), PackedContext(batch.lengths))
        )
        losses = nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets_T), reduction="none")
        nats += float((losses * torch.from_numpy(batch.weights_T)).sum())
        weight += float(batch.weights_T.sum())
    measured = held_out_loss(model, HeldOut(), torch.float32)
    assert measured.loss == pytest.approx(nats / weight, rel=1e-5)
    assert measured.bits_per_byte == pytest.approx(nats / weight / math.log(2) / 3, rel=1e-5)


def test_the_first_batches_alone_may_be_taken() -> None:
    class First(HeldOut):
        def in_order(self):
            yield next(iter(super().in_order()))

    model = tiny_model()
    assert held_out_loss(model, HeldOut(), torch.float32, 1) == held_out_loss(model, First(), torch.float32)
    assert held_out_loss(model, HeldOut(), torch.float32, 1) != held_out_loss(model, HeldOut(), torch.float32)


def test_the_model_is_measured_as_it_will_be_used_and_goes_on_as_it_was() -> None:
    model = speaking_model().train()
    state = torch.get_rng_state()
    assert held_out_loss(model, HeldOut(), torch.float32) == held_out_loss(model, HeldOut(), torch.float32)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_data_in_which_nothing_counts_is_refused() -> None:
    class Empty:
        def in_order(self):
            return iter(())

    with pytest.raises(TrainingError, match="no token of the validation data"):
        held_out_loss(tiny_model(), Empty(), torch.float32)


@pytest.mark.parametrize(("every", "measured"), [(0, [12]), (5, [5, 10, 12])])
def test_validation_happens_every_so_often_and_at_the_end(tmp_path: Path, every: int, measured: list[int]) -> None:
    run = trainer(tmp_path, validation=HeldOut(), validate_every=every)
    run.run()
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert [s.step for s in steps if s.validation_loss is not None] == measured
    assert steps[-1].validation_loss == held_out_loss(run.model, HeldOut(), torch.float32).loss


def test_no_held_out_data_is_nothing_to_measure(tmp_path: Path) -> None:
    trainer(tmp_path, validate_every=1).run()
    assert {s.validation_loss for s in read_metrics(tmp_path / "metrics.jsonl")} == {None}


def test_metrics_of_runs_from_before_there_was_validation_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    trainer(tmp_path, validation=HeldOut()).run()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        del record["validation_loss"], record["validation_bits_per_byte"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [s.loss for s in read_metrics(path)] == [record["loss"] for record in records]
    path.write_text('{"step": 1}\n')
    with pytest.raises(FormatError, match="not a record"):
        read_metrics(path)


def test_samples_go_on_from_the_prompts(tmp_path: Path, capsys) -> None:
    run = trainer(tmp_path, **{**EVERY_STEP, "sample_every": 5})
    run.run()
    samples = read_samples(tmp_path / "samples.jsonl")
    assert [(s.step, s.prompt) for s in samples] == [(n, p) for n in (5, 10, 12) for p in ("ab", "c")]
    ids = [256, *b"ab"]
    for _ in range(5):
        context = PackedContext([len(ids)])
        hidden = run.model.eval()(torch.tensor(ids), context.positions(), context)
        ids.append(int(run.model.logits(hidden)[-1].argmax()))
    assert samples[-2].text == ByteTokenizer().decode(ids[3:], skip_special=True)
    assert f"sample 12  'ab' → {samples[-2].text!r}" in capsys.readouterr().err


def test_a_model_with_a_chat_template_is_asked_as_a_user(tmp_path: Path, monkeypatch) -> None:
    from camelid.engine.engine import Engine

    prompts = []
    add = Engine.add
    monkeypatch.setattr(
        Engine, "add", lambda self, ids, *args, **named: prompts.append(ids) or add(self, ids, *args, **named)
    )
    trainer(tmp_path, template=ChatMLFormat.template, sample_every=12, sample_prompts=("Hi",), sample_tokens=2).run()
    asked = ChatMLFormat(ByteTokenizer()).render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert prompts == [asked.ids]


def test_warm_samples_are_those_of_the_seed(tmp_path: Path) -> None:
    texts = []
    for folder in ("one", "two"):
        trainer(tmp_path / folder, **EVERY_STEP, sample_temperature=1.0).run()
        texts.append((tmp_path / folder / "samples.jsonl").read_text())
    assert texts[0] == texts[1]


def test_validation_and_samples_are_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", validation=HeldOut(), **EVERY_STEP).run()
    run = trainer(tmp_path / "run", validation=HeldOut(), **EVERY_STEP)
    run._on_step = lambda metrics: (_ for _ in ()).throw(KeyError) if metrics.step == 6 else None
    with pytest.raises(KeyError):
        run.run()
    path = tmp_path / "run" / "samples.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "pro')
    trainer(tmp_path / "run", validation=HeldOut(), **EVERY_STEP).run()

    assert path.read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    curves = [
        [(s.step, s.loss, s.validation_loss) for s in read_metrics(tmp_path / folder / "metrics.jsonl")]
        for folder in ("run", "whole")
    ]
    assert curves[0] == curves[1]


def test_what_is_looked_at_may_change_between_two_starts(tmp_path: Path) -> None:
    trainer(tmp_path, validation=HeldOut(), **EVERY_STEP).run()
    assert trainer(tmp_path, validate_every=3, validate_batches=1).step == 12


def test_the_report_shows_both(tmp_path: Path) -> None:
    trainer(tmp_path, validation=HeldOut(), **{**EVERY_STEP, "sample_prompts": ("<b>",)}).run()
    page = write_report(tmp_path).read_text()
    assert "validation loss (nats per token)" in page
    assert "validation bits per byte, step 12" in page
    assert "<b>&lt;b&gt;</b>" in page
    assert "<b><b>" not in page


def test_validation_has_a_line_of_its_own_in_a_log(tmp_path: Path, capsys) -> None:
    trainer(tmp_path, validation=HeldOut()).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("validation")]
    assert len(lines) == 1
    assert lines[0].startswith("validation 12/12  loss ")


@pytest.mark.parametrize("changes", [{"sample_every": 2}, {"sample_prompts": ("a",)}])
def test_samples_need_both_an_interval_and_prompts(changes: dict) -> None:
    with pytest.raises(ValueError, match="go together"):
        settings(**changes)


def test_prompts_that_cannot_be_replied_to_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a prompt of 64 tokens cannot be replied to in a context of 64"):
        trainer(tmp_path, sample_every=1, sample_prompts=("a" * 63,))
    with pytest.raises(RecipeError, match="samples need a tokenizer"):
        Trainer(tiny_model(), TinyBatches(), settings(sample_every=1, sample_prompts=("a",)), tmp_path)
    with pytest.raises(ChatFormatError):
        trainer(tmp_path, sample_every=1, sample_prompts=("a",), template="{{ raise_exception('no') }}")
    assert list(tmp_path.iterdir()) == []
