"""Models of the Hugging Face hub, through `huggingface_hub` and its cache.

The hub's address, its token and the cache's folder are the user's own settings of that library (`HF_ENDPOINT`,
`HF_TOKEN`, `HF_HOME`, …).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camelid.base.errors import CamelidError, NetworkError, NotFoundError
from camelid.base.files import disk_error

NEEDED = ["*.safetensors", "*.json", "*.model", "merges.txt", "*.jinja"]
"""What a model is read from: weights as safetensors, and data beside them; nothing that can run code."""

LICENCES = ["LICENSE*", "USE_POLICY*"]

IGNORED = ["*/*"]
"""Folders inside a repository hold other formats of the same weights."""


@dataclass(frozen=True)
class CachedModel:
    """A model in the hub's cache."""

    repo_id: str
    path: Path
    num_bytes: int


def find_cached(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder of a model in the hub's cache, None if it has not been fetched."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=NEEDED, ignore_patterns=IGNORED, local_files_only=True
        )
    except (OSError, HFValidationError):
        return None
    path = Path(str(folder))
    return path if (path / "config.json").is_file() else None


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Fetch a model into the hub's cache, going on where an earlier try stopped.

    Args:
        repo_id: organisation/name.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        NotFoundError: there is no such repository or revision, or it may not be seen without a token.
        NetworkError: the hub cannot be reached, or it wants the licence accepted first.
        ResourceError: the disk is full.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=NEEDED + LICENCES, ignore_patterns=IGNORED
        )
    except Exception as error:
        translated = _translate(error, repo_id, revision)
        if translated is None:
            raise
        raise translated from error
    return Path(str(folder))


def cached_models() -> list[CachedModel]:
    """Every model in the hub's cache that has a `config.json`."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    models = []
    for repository in sorted(cache.repos, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model" and (path := find_cached(repository.repo_id)) is not None:
            models.append(CachedModel(repository.repo_id, path, repository.size_on_disk))
    return models


def remove_cached(repo_id: str) -> int:
    """Delete every revision of a model from the hub's cache.

    Returns:
        The number of bytes freed.

    Raises:
        NotFoundError: the cache has no such model.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound as error:
        raise NotFoundError(f"'{repo_id}' has not been pulled") from error
    for repository in cache.repos:
        if repository.repo_type == "model" and repository.repo_id == repo_id:
            strategy = cache.delete_revisions(*(revision.commit_hash for revision in repository.revisions))
            strategy.execute()
            return strategy.expected_freed_size
    raise NotFoundError(f"'{repo_id}' has not been pulled")


def _translate(error: Exception, repo_id: str, revision: str | None) -> CamelidError | None:
    """What went wrong on the hub, in our words; None for an error that is none of the hub's."""
    from huggingface_hub import errors

    # The HTTP library changed its name between versions of huggingface_hub: take its error from there.
    http_error: type[Exception] = getattr(errors, "HTTPError")  # noqa: B009

    if isinstance(error, errors.GatedRepoError):
        return NetworkError(
            f"the hub gives '{repo_id}' only to those who have accepted its licence",
            hint="accept it on the model's page, then put your access token into HF_TOKEN (or run `hf auth login`)",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"the hub has no model '{repo_id}', or not without a token",
            hint="check the spelling; for a private model put your access token into HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"'{repo_id}' has no revision '{revision}'")
    if isinstance(error, errors.HFValidationError):
        return NotFoundError(f"'{repo_id}' is no name of a Hugging Face model", hint="write it as organisation/name")
    network = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, http_error)
    if isinstance(error, network):
        return NetworkError(
            f"cannot fetch '{repo_id}' from the hub: {_first_line(error)}",
            hint="check the connection (HTTPS_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE) and run the same command again; "
            "what has arrived is kept",
        )
    if isinstance(error, OSError):
        return disk_error(error, Path(error.filename) if error.filename else Path(repo_id))
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
