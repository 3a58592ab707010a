from __future__ import annotations

from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from camelid.base.errors import CamelidError, NetworkError, NotFoundError, ResourceError
from camelid.checkpoint import hub
from camelid.checkpoint.catalogue import CATALOGUE, HubSource
from camelid.checkpoint.pull import pull

if TYPE_CHECKING:
    from pathlib import Path


def raising(error: Exception) -> Any:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    return snapshot_download


def hub_error(kind: type[Exception]) -> Exception:
    """An error as the library raises it, without the HTTP response that its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "what the server said.\nand more")
    return error


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Every question to a hub that has everything."""
    (tmp_path / "config.json").write_text("{}")
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_only_data_is_fetched(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert pull("org/name", revision="v1") == tmp_path

    (call,) = asked
    assert (call["repo_id"], call["revision"]) == ("org/name", "v1")
    assert not [pattern for pattern in call["allow_patterns"] if pattern in ("*", "*.py", "*.bin", "*.pth")]


def test_a_catalogue_name_leads_to_its_repository(asked: list[dict[str, Any]]) -> None:
    name, source = next((name, e.source) for name, e in CATALOGUE.items() if isinstance(e.source, HubSource))

    pull(name)

    assert [call["repo_id"] for call in asked] == [source.repo_id]


def test_what_is_cached_is_found_without_asking_the_network(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert hub.find_cached("org/name") == tmp_path
    assert [call["local_files_only"] for call in asked] == [True]


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))

    assert hub.find_cached("org/name") is None
    with pytest.raises(NotFoundError, match="has not been pulled"):
        hub.remove_cached("org/name")


@pytest.mark.parametrize(
    ("error", "expected", "hint"),
    [
        (hub_error(errors.GatedRepoError), NetworkError, "HF_TOKEN"),
        (hub_error(errors.RepositoryNotFoundError), NotFoundError, "check the spelling"),
        (hub_error(errors.RevisionNotFoundError), NotFoundError, None),
        (hub_error(errors.LocalEntryNotFoundError), NetworkError, "check the connection"),
        (hub_error(errors.OfflineModeIsEnabled), NetworkError, "check the connection"),
        (hub_error(errors.HfHubHTTPError), NetworkError, "check the connection"),
        (errors.HFValidationError("bad id"), NotFoundError, "organisation/name"),
        (OSError(28, "No space left on device"), ResourceError, "free some space"),
    ],
)
def test_what_the_hub_says_becomes_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[CamelidError], hint: str | None
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))

    with pytest.raises(expected) as caught:
        hub.fetch("org/name")

    assert "\n" not in caught.value.what
    assert hint is None or hint in (caught.value.hint or "")


def test_an_error_that_is_none_of_the_hubs_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(ZeroDivisionError()))

    with pytest.raises(ZeroDivisionError):
        hub.fetch("org/name")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library itself, with nobody at the address that it asks."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(NetworkError, match="cannot fetch 'org/name'"):
        hub.fetch("org/name")
