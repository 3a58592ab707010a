"""What the engine can do, from the command line: each option has its effect, and a bad value one message and a hint."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import torch

from camelid.base.errors import CamelidError
from camelid.cli.chat import _run_command, app, recommended_sampling
from camelid.cli.conversation import Conversation
from camelid.cli.generation import (
    ChoiceOptions,
    EngineOptions,
    PenaltyOptions,
    ReplyOptions,
    open_llm,
    sampling_settings,
    with_recommended,
)
from camelid.cli.main import main
from camelid.engine.params import FILTERS, SamplingParams
from camelid.model.llama import Llama
from camelid.model.lora import LoraAdapter, LoraConfig

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.base_model(tmp_path_factory.mktemp("cli") / "model", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    """One that changes replies."""
    llm = open_llm(str(model), EngineOptions(device="cpu"))
    adapter = LoraAdapter.new(llm.model, LoraConfig(rank=2, alpha=64))
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=1, generator=torch.Generator().manual_seed(3))
    adapter.save(model.parent / "pirate")
    return model.parent / "pirate"


class Chat:
    """Runs `camelid chat MODEL --prompt hello …` in this process."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self._monkeypatch, self._capsys = str(model), monkeypatch, capsys

    def __call__(self, *options: str, code: int = 0, prompt: bool = True) -> tuple[str, str]:
        arguments = ["chat", self.model, "--device", "cpu", *(["-p", "hello"] if prompt else []), *options]
        self._monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = self._capsys.readouterr()
        assert caught.value.code == code, said.err
        return said.out.removesuffix("\n"), said.err


@pytest.fixture
def chat(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(model, monkeypatch, capsys)


def test_every_setting_of_a_reply_is_an_option_or_not_for_a_terminal() -> None:
    offered = {field.name for group in (ReplyOptions, ChoiceOptions, PenaltyOptions) for field in fields(group)}
    known = {field.name for field in fields(SamplingParams)}
    assert known - offered == {
        *("logprobs", "top_logprobs", "prompt_logprobs", "stop_token_ids", "banned_token_ids", "ignore_eos"),
        *("truncate", "priority", "owner", "cache_salt", "dry_sequence_breakers", "adapter"),
    }
    assert offered <= known


@pytest.mark.parametrize("option", ["json_schema", "json_file", "regex", "lark", "gbnf", "choice"])
def test_a_reply_has_the_form_that_is_asked_for(chat: Chat, tmp_path: Path, option: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "lark").write_text('start: "x" ("y" | "z")')
    (tmp_path / "gbnf").write_text('root ::= "x" ("y" | "z")')
    out, _ = chat(
        *("--temperature", "2", "--top-p", "1", "--seed", "1"),
        *{
            "json_schema": ["--json-schema", json.dumps(schema)],
            "json_file": ["--json-schema", str(tmp_path / "schema.json")],
            "regex": ["--regex", "x(y|z)"],
            "lark": ["--grammar", str(tmp_path / "lark")],
            "gbnf": ["--grammar", str(tmp_path / "gbnf")],
            "choice": ["--choice", "xy", "--choice", "xz"],
        }[option],
    )
    if option.startswith("json"):
        assert isinstance(json.loads(out)["a"], bool)
    else:
        assert out in ("xy", "xz")


def test_sampling_options_are_the_settings_of_the_same_names(chat: Chat, model: Path) -> None:
    options = {
        "temperature": 1.3,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.98,
        "top_n_sigma": 4.0,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "seed": 7,
        "max_tokens": 12,
        "min_tokens": 3,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "dry_multiplier": 0.8,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "dry_range": 50,
    }
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    out, _ = chat(*given, "--stop", "qq", "--stop", "zz", "--ban", "e", "--logit-bias", "65=2.5")
    llm = open_llm(str(model), EngineOptions(device="cpu"))
    lists: dict[str, Any] = {"stop": ["qq", "zz"], "banned_strings": ["e"], "logit_bias": {65: 2.5}}
    expected = llm.generate([{"role": "user", "content": "hello"}], **options, **lists)
    assert out == expected.text
    assert "e" not in out


def test_mirostat_takes_the_place_of_the_recommended_filters(chat: Chat) -> None:
    recommended = {"temperature": 0.6, **dict.fromkeys(FILTERS, 0.5)}
    assert with_recommended({"mirostat_tau": 5.0}, recommended) == {"temperature": 0.6, "mirostat_tau": 5.0}
    assert with_recommended({"top_p": 0.9}, recommended)["min_p"] == 0.5
    assert "top_p" in recommended_sampling("unknown", {})
    chat("--mirostat-tau", "3", "--mirostat-eta", "0.2", "--max-tokens", "3")


def test_several_replies_to_one_prompt(chat: Chat) -> None:
    out, err = chat("--n", "3", "--temperature", "1", "--seed", "5", "--max-tokens", "6", "--stats")
    first, _ = chat("--temperature", "1", "--seed", "5", "--max-tokens", "6")
    assert out.startswith(first.strip())
    assert [line for line in err.splitlines() if " of 3" in line] == [f"[{number} of 3, cut]" for number in (1, 2, 3)]
    assert "18 tokens in " in err


def test_guesses_change_nothing_and_are_counted(chat: Chat) -> None:
    settings = ["--max-tokens", "20", "--temperature", "0"]
    plain, err = chat(*settings, "--stats")
    assert "guesses" not in err
    guessed, err = chat(*settings, "--stats", "--draft", chat.model)
    assert guessed == plain
    right, checked = map(int, re.search(r"(\d+) of (\d+) guesses were right", err).groups())  # type: ignore[union-attr]
    assert right == checked > 10  # by the very model that it guesses for
    looked_up, err = chat(*settings, "--draft-tokens", "3", "--regex", "(ab){8}", "--stats")
    assert looked_up == "ab" * 8
    assert "guesses were right" in err


def test_a_cache_of_8_bits_and_a_shorter_context(chat: Chat) -> None:
    _, err = chat("--cache-format", "q8", "--context", "50", "--max-tokens", "3")
    assert "context 50 tokens" in err


def test_an_adapter_answers(chat: Chat, adapter: Path) -> None:
    settings = ["--max-tokens", "10", "--temperature", "0"]
    plain, _ = chat(*settings)
    changed, _ = chat(*settings, "--adapter", str(adapter))
    assert changed != plain
    assert chat(*settings, "--adapter", f"{adapter}=jack")[0] == changed


def test_the_adapter_is_chosen_while_talking(model: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = open_llm(str(model), EngineOptions(device="cpu", adapter=[str(adapter), f"{adapter}=jack"]))
    conversation = Conversation(llm, sampling={"max_tokens": 3, "adapter": "pirate"})
    _run_command("/adapter", conversation)
    assert "pirate (answers now), jack" in capsys.readouterr().err
    _run_command("/adapter jack", conversation)
    assert conversation.sampling["adapter"] == "jack"
    _run_command("/adapter none", conversation)
    assert conversation.sampling["adapter"] is None
    with pytest.raises(CamelidError, match="no adapter named 'jak'\nhint: did you mean 'jack'"):
        _run_command("/adapter jak", conversation)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--temperature", "nan"], "temperature must be 0 (greedy) or more, not nan", ""),
        (["--top-p", "2"], "top_p must be above 0 and at most 1, not 2.0", ""),
        (["--seed", "-1"], "seed must be", ""),
        (["--n", "0"], "n must be a whole number from 1", ""),
        (["--mirostat-tau", "5", "--min-p", "0.1"], "mirostat takes their place", ""),
        (["--regex", "a", "--choice", "b"], "one grammar, not regex and choice", ""),
        (["--regex", "("], "this regex cannot be honoured", ""),
        (["--json-schema", "no.json"], "there is no such file (no.json)", "starts with"),
        (["--json-schema", "{"], "is no JSON", ""),
        (["--grammar", "no.lark"], "there is no such file (no.lark)", ""),
        (["--logit-bias", "the=5"], "a token's id and a number, not 'the=5'", "camelid tokenizer encode"),
        (["--logit-bias", "100000=5"], "outside the vocabulary", ""),
        (["--adapter", "nowhere=x"], "there is no such adapter (nowhere)", "as PEFT writes it"),
        (["--adapter", "tests"], "adapter_config.json", ""),
        (["--cache-format", "q4"], "there is no cache format 'q4'", "q8"),
        (["--draft-tokens", "-1"], "num_drafts must be at least 0", ""),
        (["--draft", "no-such-model"], "no-such-model", "known"),
        (["--context", "100000"], "positions end at 128", "up to 128"),
    ],
)
def test_a_bad_value_is_one_message_and_a_hint(chat: Chat, options: list[str], message: str, hint: str) -> None:
    out, err = chat(*options, code=2)
    assert out == ""
    assert err.count("error: ") == 1
    assert message in err
    assert hint in err


def test_a_bad_value_is_told_before_the_model_is_loaded(chat: Chat) -> None:
    _, err = chat("--top-k", "-1", code=2)
    assert "loading" not in err


def test_several_replies_are_no_conversation(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    _, err = chat("--n", "2", code=2, prompt=False)
    assert "a conversation goes on from one reply" in err


def test_a_draft_of_other_tokens_is_refused(chat: Chat, tmp_path: Path) -> None:
    other = tiny_chat.base_model(tmp_path / "other", chat_template=TEMPLATE)
    settings = json.loads((other / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    one, two = [token for token, number in vocabulary.items() if number in (70, 71)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(settings))
    _, err = chat("--draft", str(other), code=2)
    assert "has other tokens" in err
    assert "--draft-tokens alone" in err


def test_the_help_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(["--help"])
    shown = capsys.readouterr().out
    titles = ["The reply", "How tokens are chosen", "Penalties and bans", "Model and engine"]
    places = [shown.index(title) for title in titles]
    assert places == sorted(places)
    assert places[0] < shown.index("--json-schema") < places[1] < shown.index("--xtc-threshold") < places[2]


def test_what_is_left_out_is_not_set() -> None:
    assert sampling_settings(ReplyOptions(), ChoiceOptions(), PenaltyOptions()) == {"max_tokens": 512}


def test_convert_merges_an_adapter(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["camelid", "convert", str(model), str(tmp_path / "merged"), *options])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err

    assert "--verify compares with the source" in convert("--to", "huggingface", "--adapter", str(adapter), "--verify")
    assert not (tmp_path / "merged").exists()
    convert("--to", "huggingface", "--adapter", str(adapter))

    with_adapter = open_llm(str(model), EngineOptions(device="cpu", adapter=[str(adapter)]))
    merged = open_llm(str(tmp_path / "merged"), EngineOptions(device="cpu"))
    assert isinstance(merged.model, Llama)
    expected = with_adapter.generate("hello", adapter="pirate", max_tokens=10)
    assert merged.generate("hello", max_tokens=10).token_ids == expected.token_ids
    assert with_adapter.generate("hello", max_tokens=10).token_ids != expected.token_ids
