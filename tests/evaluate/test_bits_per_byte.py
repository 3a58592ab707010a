"""Bits per byte: exact, the same from files and from shards, and never all logits at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from camelid.base.errors import CamelidError, EngineError, FormatError, NotFoundError, RecipeError, TokenizerError
from camelid.base.recipe import validated
from camelid.data.shards import TokenShards, write_shards
from camelid.evaluate import subject as subject_module
from camelid.evaluate.ngram import KneserNey
from camelid.evaluate.subject import ModelSubject
from camelid.evaluate.task import Measurement
from camelid.evaluate.tasks.bits_per_byte import Baseline, BitsPerByte
from camelid.llm import LLM
from camelid.model.attention import PackedContext
from camelid.model.llama import Llama
from camelid.tokenizer import Tokenizer
from camelid.tokenizer.train import train_tokenizer


@pytest.fixture
def subject(model: Llama, tokenizer: Tokenizer) -> ModelSubject:
    return ModelSubject(LLM(model, tokenizer))


@pytest.fixture
def texts(documents: list[str], tmp_path: Path) -> Path:
    return Path(jsonl(tmp_path / "held-out.jsonl", documents))


def jsonl(path: Path, texts: list[str], field: str = "text") -> str:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


@torch.no_grad()
def naive_nats(model: Llama, ids: list[int], context: int, overlap: int) -> float:
    """One token at a time, each from a forward pass of its own over the window it belongs to."""
    nats = 0.0
    scored, begin, end = 0, 0, min(context, len(ids) - 1)
    while scored < len(ids) - 1:
        for target in range(scored + 1, end + 1):
            before = torch.tensor(ids[begin:target])
            packed = PackedContext([len(before)])
            logits_V = model.logits(model(before, packed.positions(), packed))[-1]
            nats -= float(torch.log_softmax(logits_V.double(), -1)[ids[target]])
        scored = end
        end = min(len(ids) - 1, end + context - overlap)
        begin = max(0, end - context)
    return nats


def test_it_is_what_a_naive_computation_gives(
    subject: ModelSubject, model: Llama, tokenizer: Tokenizer, documents: list[str], tmp_path: Path
) -> None:
    documents = documents[:8]
    measured = BitsPerByte(texts=(jsonl(tmp_path / "a.jsonl", documents),), overlap=8).measure(subject)
    ids = [tokenizer.encode(text, bos=True) for text in documents]
    assert max(map(len, ids)) > 3 * subject.context_length, "some document needs several windows"
    nats = sum(naive_nats(model, one, 32, 8) for one in ids)
    num_bytes = sum(len(text.encode()) for text in documents)
    assert measured.metrics[0].value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert (measured.metrics[0].name, measured.num_items) == ("bits per byte", len(documents))


def test_it_is_what_transformers_loss_gives(
    subject: ModelSubject, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    text = "a llama sleeps under a warm hill"
    (tmp_path / "one.txt").write_text(text)
    other = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(text, bos=True)])
    assert ids.shape[1] <= 32
    with torch.no_grad():
        loss = float(other(input_ids=ids, labels=ids).loss)
    expected = loss * (ids.shape[1] - 1) / math.log(2) / len(text)
    measured = BitsPerByte(texts=(str(tmp_path / "one.txt"),)).measure(subject)
    assert measured.metrics[0].value == pytest.approx(expected, rel=1e-5)
    assert measured.metrics[0].standard_error is None, "one document tells nothing of others"


def shards_and_held_out(documents: list[str], tokenizer: Tokenizer, folder: Path) -> tuple[Path, list[str]]:
    write_shards(documents, tokenizer, folder, validation_share=0.4, num_threads=1)
    held_out = TokenShards(folder, tokenizer, "validation")
    return folder, [tokenizer.decode(held_out.document(i).tolist(), skip_special=True) for i in range(len(held_out))]


def test_files_and_shards_of_the_same_text_give_the_same(
    subject: ModelSubject, tokenizer: Tokenizer, documents: list[str], tmp_path: Path
) -> None:
    folder, held_out = shards_and_held_out(documents, tokenizer, tmp_path / "shards")
    assert set(held_out) < set(documents)
    same = jsonl(tmp_path / "same.jsonl", held_out, "body")
    from_shards = BitsPerByte(shards=folder).measure(subject)
    from_files = BitsPerByte(texts=(same,), text_field="body").measure(subject)
    assert from_shards.metrics == from_files.metrics
    assert from_shards.notes == from_files.notes


def test_a_model_that_knows_nothing_pays_the_entropy_of_the_vocabulary(
    model: Llama, tokenizer: Tokenizer, documents: list[str], texts: Path
) -> None:
    flat = Llama.from_config(model.config)
    for parameter in flat.parameters():
        torch.nn.init.zeros_(parameter)
    measured = BitsPerByte(texts=(str(texts),)).measure(ModelSubject(LLM(flat, tokenizer)))
    num_tokens = sum(len(tokenizer.encode(text)) for text in documents)
    num_bytes = sum(len(text.encode()) for text in documents)
    assert measured.metrics[0].value == pytest.approx(math.log2(tokenizer.vocab_size) * num_tokens / num_bytes)


def test_logits_live_in_chunks_and_short_documents_share_a_pass(
    subject: ModelSubject, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BitsPerByte(texts=(str(texts),)).measure(subject)
    monkeypatch.setattr(subject_module, "LOGITS_BYTES", {"cpu": 0})
    monkeypatch.setattr(subject_module, "BATCH_TOKENS", {"cpu": 400})
    rows, passes = [], []
    model = subject.llm.model
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(len(hidden)) or logits(hidden))
    hook = model.register_forward_pre_hook(lambda _, arguments: passes.append(arguments[2].lengths))
    in_chunks = BitsPerByte(texts=(str(texts),)).measure(subject)
    hook.remove()
    assert max(rows) <= subject_module.MIN_CHUNK_TOKENS < max(map(sum, passes))
    assert max(map(sum, passes)) <= 400
    assert max(map(len, passes)) > 5
    assert in_chunks.metrics[0].value == pytest.approx(whole.metrics[0].value, rel=1e-5)


def test_the_baseline_learns_from_the_train_split_and_is_reported_beside_the_model(
    subject: ModelSubject, tokenizer: Tokenizer, documents: list[str], tmp_path: Path
) -> None:
    folder, held_out = shards_and_held_out(documents, tokenizer, tmp_path / "shards")
    measured = BitsPerByte(shards=folder, baseline=Baseline(ngram=3)).measure(subject)
    bits, baseline, share = measured.metrics
    train = TokenShards(folder, tokenizer, "train")
    ids = [train.document(i) for i in range(len(train))]
    lengths = [len(one) for one in ids]
    reference = KneserNey(np.concatenate(ids), np.cumsum([0, *lengths[:-1]]), vocab_size=tokenizer.vocab_size, order=3)
    nats = sum(
        float(reference.nats(np.array(tokenizer.encode(text, bos=True)), np.array([0])).sum()) for text in held_out
    )
    assert baseline.value == pytest.approx(nats / math.log(2) / sum(len(text.encode()) for text in held_out))
    assert baseline.value < bits.value, "the model is random, the text is not"
    assert share.value == pytest.approx(bits.value / baseline.value)
    assert [metric.name for metric in measured.metrics] == [
        "bits per byte", "bits per byte of a 3-gram model", "model / 3-gram"
    ]  # fmt: skip


def test_a_vocabulary_without_begin_of_sequence_starts_documents_after_its_end(
    model: Llama, documents: list[str], tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(documents, 300, special_tokens=["<|end_of_text|>", "<|one|>", "<|two|>"])
    assert tokenizer.special.bos is None
    subject = ModelSubject(LLM(model, tokenizer))
    folder, held_out = shards_and_held_out(documents[2:16], tokenizer, tmp_path / "shards")
    measured = BitsPerByte(shards=folder, baseline=Baseline(ngram=2)).measure(subject)
    eos = tokenizer.special.eos
    assert eos is not None
    nats = sum(naive_nats(model, [eos, *tokenizer.encode(text)], 32, 16) for text in held_out)
    num_bytes = sum(len(text.encode()) for text in held_out)
    assert measured.metrics[0].value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert "<|end_of_text|>" in measured.notes[0]


def test_a_model_made_for_very_long_texts_is_given_shorter_windows_unless_told(
    subject: ModelSubject, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camelid.evaluate.tasks.bits_per_byte.DEFAULT_CONTEXT", 20)
    assert "windows of 20 tokens that overlap by 10" in measure(subject, texts=[str(texts)]).notes[0]
    assert "windows of 32 tokens" in measure(subject, texts=[str(texts)], context=32).notes[0]


def test_scores_that_are_not_numbers_are_an_error(model: Llama, tokenizer: Tokenizer, texts: Path) -> None:
    broken = Llama.from_config(model.config)
    broken.initialize(seed=0)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(EngineError, match="not numbers"):
        measure(ModelSubject(LLM(broken, tokenizer)), texts=[str(texts)])


def test_the_report_shows_the_best_and_the_worst_predicted(subject: ModelSubject, texts: Path) -> None:
    samples = BitsPerByte(texts=(str(texts),), num_samples=2).measure(subject).samples
    bits = [float(sample.note.split()[0]) for sample in samples]
    assert len(bits) == 4
    assert bits == sorted(bits)
    assert samples[0].item.startswith(str(texts))


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    from camelid.evaluate.tasks.bits_per_byte import ratio

    generator = np.random.default_rng(0)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        sizes = generator.integers(50, 500, size=200).astype(float)
        return sizes * generator.normal(1.5, 0.4, size=200), sizes

    values = [ratio("", *sample()).value for _ in range(400)]
    assert ratio("", *sample()).standard_error == pytest.approx(np.std(values), rel=0.25)


def measure(subject: ModelSubject, **settings: object) -> Measurement:
    return validated(BitsPerByte, {"task": "bits_per_byte", **settings}, "test").measure(subject)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({}, RecipeError, "name either shards or texts"),
        ({"texts": ["a.txt"], "shards": "b"}, RecipeError, "name either shards or texts"),
        ({"texts": ["a.txt"], "baseline": {}}, RecipeError, "name shards"),
        ({"shards": "b", "split": "train", "baseline": {}}, RecipeError, "must not be measured"),
        ({"texts": ["nowhere.txt"]}, NotFoundError, "nowhere.txt"),
        ({"shards": "nowhere"}, NotFoundError, "no token shards"),
        ({"texts": ["a.txt"], "context": 64}, RecipeError, "made for 32 positions"),
        ({"texts": ["a.txt"], "context": 8, "overlap": 8}, RecipeError, "leaves nothing"),
        ({"texts": ["a.txt"], "strid": 8}, RecipeError, "unknown key 'strid'"),
    ],
)
def test_impossible_settings_are_said_to_be(
    subject: ModelSubject, settings: dict[str, object], error: type[CamelidError], says: str
) -> None:
    with pytest.raises(error, match=says):
        measure(subject, **settings)


def test_bad_files_are_named_with_their_line(subject: ModelSubject, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(FormatError, match=r"bad\.jsonl:2"):
        measure(subject, texts=[str(tmp_path / "bad.jsonl")])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(FormatError, match="empty"):
        measure(subject, texts=[str(tmp_path / "empty.txt")])
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(FormatError, match="every document is empty"):
        measure(subject, texts=[str(tmp_path / "blank.jsonl")])


def test_shards_of_another_vocabulary_are_refused(subject: ModelSubject, documents: list[str], tmp_path: Path) -> None:
    shards_and_held_out(documents, train_tokenizer(documents, 290), tmp_path / "shards")
    with pytest.raises(TokenizerError, match="another vocabulary"):
        measure(subject, shards=str(tmp_path / "shards"))
