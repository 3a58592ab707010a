"""Comparing two checkpoints: equal ones are equal to the bit, and every way of differing is found."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from camelid.base.errors import EngineError, FormatError
from camelid.checkpoint import convert, save_huggingface
from camelid.cli.convert import app as convert_app
from camelid.cli.verify import app as verify_app
from camelid.evaluate.verify import LOSSLESS, TEXTS, Budget, Comparison, verify
from camelid.llm import load
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
)


FOUND = Comparison(
    num_tokens=10,
    retokenized=(),
    max_logit_difference=1.5,
    mean_logit_difference=0.25,
    mean_kl=0.0123,
    max_kl=0.5,
    first_divergence=7,
    num_diverged=2,
    num_greedy_tokens=64,
    bits_per_byte=(1.0, 1.01),
)


def save(folder: Path, config: LlamaConfig = CONFIG, change: Callable[[Llama], object] = lambda model: None) -> Path:
    model = Llama.from_config(config)
    model.initialize(seed=2)
    with torch.no_grad():
        change(model)
    save_huggingface(model, folder, tokenizer=train_tokenizer(TEXTS, 300))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("verify") / "model")


def test_the_same_numbers_in_another_format_are_equal_to_the_bit(tmp_path: Path, model: Path) -> None:
    convert(model, tmp_path / "meta", to="meta", model_parallel=2)

    comparison = verify(model, tmp_path / "meta")

    assert comparison.violations(LOSSLESS) == []
    assert (comparison.max_logit_difference, comparison.max_kl, comparison.first_divergence) == (0.0, 0.0, None)
    assert comparison.bits_per_byte[0] == comparison.bits_per_byte[1]


def test_the_figures_are_those_of_the_definitions(tmp_path: Path, model: Path) -> None:
    other = save(tmp_path / "other", change=lambda model: model.model.norm.weight.mul_(1.1))

    comparison = verify(model, other)

    one, two = load(model, dtype="float32"), load(other, dtype="float32")
    largest, kl, bits, tokens = 0.0, 0.0, [0.0, 0.0], 0
    for text in TEXTS:
        ids = one.tokenizer.encode(text, bos=True)
        logits = [llm.logits(ids).double() for llm in (one, two)]
        p, q = (x.softmax(-1) for x in logits)
        largest = max(largest, (logits[0] - logits[1]).abs().max().item())
        kl += (p * (p / q).log()).sum().item()
        tokens += len(ids)
        for i, probabilities in enumerate((p, q)):
            bits[i] -= sum(math.log2(probabilities[j, ids[j + 1]]) for j in range(len(ids) - 1))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert comparison.num_tokens == tokens
    assert comparison.max_logit_difference == pytest.approx(largest, rel=1e-5)
    assert comparison.mean_kl == pytest.approx(kl / tokens, rel=1e-5)
    assert comparison.bits_per_byte == pytest.approx([total / num_bytes for total in bits])


def test_a_changed_weight_is_past_the_budget_of_a_lossless_copy(tmp_path: Path, model: Path) -> None:
    def change(model: Llama) -> None:
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5  # type: ignore[index,union-attr]

    comparison = verify(model, save(tmp_path / "changed", change=change))

    assert len(comparison.violations(LOSSLESS)) == 2
    assert comparison.violations(Budget(max_kl=1.0)) == []
    assert comparison.violations(Budget(max_logit=comparison.max_logit_difference)) == []


def test_where_greedy_continuations_part(tmp_path: Path, model: Path) -> None:
    comparison = verify(model, save(tmp_path / "other", change=lambda model: model.lm_head.weight.neg_()))  # type: ignore[union-attr]

    assert comparison.first_divergence == 0
    assert comparison.num_diverged == len(TEXTS)


def test_weights_that_are_not_numbers_are_an_error(tmp_path: Path, model: Path) -> None:
    with pytest.raises(EngineError, match="not numbers"):
        verify(model, save(tmp_path / "nan", change=lambda model: model.model.norm.weight.fill_(math.nan)))


def test_what_is_not_a_number_is_past_every_budget() -> None:
    broken = replace(FOUND, max_logit_difference=math.nan, mean_kl=math.nan)

    assert len(broken.violations(Budget(max_logit=1e30, max_kl=1e30))) == 2
    assert FOUND.violations(Budget(max_logit=1e30, max_kl=1e30)) == []


def test_a_tokenizer_that_cuts_otherwise(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    for file in (tmp_path / "other").glob("tokenizer*"):
        file.unlink()
    train_tokenizer(["a river in the hills"], 280).save(tmp_path / "other")

    comparison = verify(model, tmp_path / "other")

    assert set(comparison.retokenized) == set(TEXTS)
    assert comparison.max_logit_difference == 0.0
    assert comparison.violations(LOSSLESS) == [f"{len(TEXTS)} texts have other tokens"]


def test_other_vocabularies_cannot_be_compared(tmp_path: Path, model: Path) -> None:
    with pytest.raises(FormatError, match="300 and 320 entries"):
        verify(model, save(tmp_path / "padded", replace(CONFIG, vocab_size=320)))


def test_the_table_names_what_was_found() -> None:
    text = FOUND.text()

    for part in ("the same", "max |Δ| 1.5", "mean 0.0123", "2 of 10 differ, the first after 7 tokens", "Δ +0.0100"):
        assert part in text


def test_verify_on_the_command_line(tmp_path: Path, model: Path) -> None:
    other = save(tmp_path / "other", change=lambda model: model.model.norm.weight.mul_(1.001))
    run = CliRunner().invoke

    same = run(verify_app, [str(model), str(model)])
    different = run(verify_app, [str(model), str(other)])
    near = run(verify_app, [str(model), str(other), "--max-kl", "0.01"])

    assert (same.exit_code, different.exit_code, near.exit_code) == (0, 1, 0)
    assert "the same model" in same.stdout
    assert "the largest logit difference is" in different.stdout


def test_convert_verifies_what_it_wrote(tmp_path: Path, model: Path) -> None:
    run = CliRunner().invoke

    lossless = run(convert_app, [str(model), str(tmp_path / "a.gguf"), "--to", "gguf", "--verify"])
    lossy = run(
        convert_app,
        [str(model), str(tmp_path / "b.gguf"), "--to", "gguf", "--quantize", "q8_0", "--verify", "--max-kl", "1e-9"],
    )

    assert lossless.exit_code == 0, lossless.output
    assert "max |Δ| 0," in lossless.stdout
    assert lossy.exit_code == 1, lossy.output
    assert "mean KL divergence" in lossy.stdout
    assert (tmp_path / "b.gguf").exists()
