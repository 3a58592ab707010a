"""Pulling from a hub over HTTP: revisions, gates, broken connections, and no network at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, serve
from huggingface_hub import constants
from tiny import tiny_config, tiny_model

from camelid.base.errors import NetworkError, NotFoundError
from camelid.checkpoint import hub as client
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.catalogue import resolve
from camelid.checkpoint.pull import pull, remove

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny sharded model's files, and what should not be fetched beside them."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_huggingface(tiny_model(), folder, max_shard_bytes=30_000, chat_template="{{ messages }}")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return files | {
        "LICENSE.txt": b"free",
        "modeling_llama.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80\x02",
        "original/consolidated.00.pth": b"PK",
    }


@pytest.fixture
def hub(model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, and a library that knows no other and has an empty cache."""
    with serve() as server:
        server.repositories["org/tiny"] = {"main": model, "v1": model | {"chat_template.jinja": b"old"}}
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield server


def test_a_pulled_model_opens_and_loads_by_its_id(hub: Hub) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve("org/tiny")
    assert caught.value.hint == "camelid pull org/tiny"

    folder = pull("org/tiny")

    assert resolve("org/tiny") == folder
    with closing(open_checkpoint(resolve("org/tiny"))) as checkpoint:
        assert load_model(checkpoint).config.hidden_size == tiny_config().hidden_size
        assert checkpoint.chat_template == "{{ messages }}"
    assert [model.repo_id for model in client.cached_models()] == ["org/tiny"]
    remove("org/tiny")
    assert client.find_cached("org/tiny") is None


def test_only_data_travels(hub: Hub) -> None:
    folder = pull("org/tiny")
    fetched = {name for name, _ in hub.downloads}
    assert fetched == {file.name for file in folder.iterdir()}
    assert "LICENSE.txt" in fetched
    assert not fetched & {"modeling_llama.py", "pytorch_model.bin", "original/consolidated.00.pth"}


def test_a_revision_is_the_one_asked_for(hub: Hub) -> None:
    assert (pull("org/tiny", revision="v1") / "chat_template.jinja").read_text() == "old"
    assert (pull("org/tiny") / "chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(NotFoundError, match="no revision 'v2'"):
        pull("org/tiny", revision="v2")


def test_a_broken_download_goes_on_where_it_stopped(
    hub: Hub, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    shard = max((name for name in model if name.endswith(".safetensors")), key=lambda name: len(model[name]))
    hub.cuts[shard] = 10_000
    folder = pull("org/tiny")

    assert (folder / shard).read_bytes() == model[shard]
    assert [asked for name, asked in hub.downloads if name == shard] == [None, "bytes=8192-"]


def test_what_is_here_is_not_fetched_again(hub: Hub) -> None:
    pull("org/tiny")
    hub.downloads.clear()
    pull("org/tiny")
    assert hub.downloads == []


def test_a_gated_model_wants_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("org/tiny")
    with pytest.raises(NetworkError, match="accepted its licence") as caught:
        pull("org/tiny")
    assert "HF_TOKEN" in str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(NetworkError, match="accepted its licence"):
        pull("org/tiny")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (pull("org/tiny") / "config.json").is_file()


def test_an_unknown_model(hub: Hub) -> None:
    with pytest.raises(NotFoundError, match="the hub has no model 'org/tinny'"):
        pull("org/tinny")


def test_without_a_network_the_cache_still_opens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")

    assert resolve("org/tiny") == folder
    assert pull("org/tiny") == folder


def test_a_half_fetched_model_is_not_taken_for_whole(hub: Hub, model: dict[str, bytes]) -> None:
    shard = max((name for name in model if name.endswith(".safetensors")), key=lambda name: len(model[name]))
    del hub.repositories["org/tiny"]["main"]
    hub.repositories["org/tiny"]["main"] = {name: content for name, content in model.items() if name != shard}
    pull("org/tiny")

    with pytest.raises(NotFoundError, match="shard"):
        open_checkpoint(resolve("org/tiny"))
