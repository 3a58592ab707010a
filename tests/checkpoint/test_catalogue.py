from __future__ import annotations

import hashlib
import math
import os
import sys
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from camelid.base.errors import NotFoundError
from camelid.checkpoint import catalogue, open_checkpoint
from camelid.checkpoint.catalogue import (
    CATALOGUE,
    HUB_ID,
    BundledSource,
    CatalogueEntry,
    HubSource,
    PackageSource,
    resolve,
)
from camelid.model.llama_config import LlamaConfig
from camelid.model.presets import PRESETS

NOT_OF_THE_SHAPE = {"dtype": "float32", "pad_token_id": None, "initializer_range": 0.02}
"""What a GGUF file does not say."""


@pytest.fixture(autouse=True)
def _isolated(camelid_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_an_existing_path_wins_over_a_name(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m-instruct").mkdir()

    assert resolve("smollm2-135m-instruct") == Path("smollm2-135m-instruct")
    assert resolve(str(tmp_path)) == tmp_path


def test_weights_inside_an_installed_package_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "canary").mkdir(parents=True)
    (site / "canary" / "__init__.py").write_text("raise AssertionError('imported')")
    (site / "canary" / "model.gguf").write_bytes(b"GGUF")
    (site / "canary-1.0.dist-info").mkdir()
    (site / "canary-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    source = PackageSource("canary", "1.0", "canary/model.gguf", 4, "")
    monkeypatch.setitem(CATALOGUE, "canary-model", CatalogueEntry("canary-model", "smollm2-135m", source))

    assert resolve("canary-model") == site / "canary" / "model.gguf"
    assert "canary" not in sys.modules


def test_another_version_of_the_package_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PackageSource("pytest", "0.0.0", "pytest/__init__.py", 1, "")
    monkeypatch.setitem(CATALOGUE, "wrong", CatalogueEntry("wrong", "smollm2-135m", source))

    with pytest.raises(NotFoundError, match="hint: camelid pull wrong"):
        resolve("wrong")


def test_a_known_name_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find", lambda entry: None)

    with pytest.raises(NotFoundError, match="hint: camelid pull smollm2-135m-instruct"):
        resolve("smollm2-135m-instruct")


@pytest.mark.parametrize("typo", ["smollm2-135m-instrct", "smolm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_a_name_that_is_nearly_right(typo: str) -> None:
    with pytest.raises(NotFoundError, match="smollm2-135m-instruct"):
        resolve(typo)


def test_a_path_that_is_nearly_right_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()

    with pytest.raises(NotFoundError, match="did you mean") as caught:
        resolve(str(tmp_path / "my-modle"))

    assert str(tmp_path / "my-model") in str(caught.value)


def test_a_path_like_nothing_here(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file or folder"):
        resolve(str(tmp_path / "a" / "b" / "c"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "/" + "y/" * 3000])
def test_what_cannot_be_a_path_is_just_not_there(name: str) -> None:
    with pytest.raises(NotFoundError):
        resolve(name)


def test_a_hub_id_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from camelid.checkpoint import hub

    monkeypatch.setattr(hub, "find_cached", lambda repo_id: tmp_path if repo_id == "org/name" else None)

    assert resolve("org/name") == tmp_path
    with pytest.raises(NotFoundError, match="hint: camelid pull org/other"):
        resolve("org/other")


def test_every_entry_has_a_licence_and_a_source() -> None:
    for name, entry in CATALOGUE.items():
        assert name == entry.name == name.lower()
        assert entry.licence
        if isinstance(entry.source, HubSource):
            assert HUB_ID.fullmatch(entry.source.repo_id)
        elif isinstance(entry.source, BundledSource):
            assert resolve(name) == entry.source.path
            assert entry.source.path.stat().st_size <= 40_000_000
        else:
            assert len(entry.source.sha256) == 64


def test_nothing_is_offered_whose_weights_cannot_be_fetched() -> None:
    pickled = {name for name, preset in PRESETS.items() if preset.pickled}

    assert "opt-125m" in pickled
    assert pickled.isdisjoint(CATALOGUE)


def test_the_default_models_shape_is_that_of_its_file() -> None:
    preset = PRESETS[CATALOGUE["smollm2-135m-instruct"].preset]

    assert preset.config.num_parameters == 134_515_008
    assert preset.config.max_position_embeddings == 8192
    assert CATALOGUE["smollm2-135m-instruct"].licence == "Apache-2.0"


def test_gated_models_are_flagged() -> None:
    assert HubSource("meta-llama/Llama-3.2-1B").gated
    assert not HubSource("codellama/CodeLlama-7b-hf").gated
    assert not HubSource("someone/meta-llama").gated


def test_the_default_model_is_the_file_that_the_catalogue_names() -> None:
    source = CATALOGUE["smollm2-135m-instruct"].source
    assert isinstance(source, PackageSource)
    try:
        installed = distribution(source.package)
    except PackageNotFoundError:
        pytest.skip(f"the package {source.package} is not installed")
    file = Path(str(installed.locate_file(source.member)))

    assert os.path.getsize(file) == source.num_bytes  # noqa: PTH202
    assert hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256
    assert resolve("smollm2-135m-instruct") == file
    with closing(open_checkpoint(file)) as checkpoint:
        config = LlamaConfig.from_hf(checkpoint.config)
        assert sum(math.prod(info.shape) for info in checkpoint.tensors.values()) == config.num_parameters
    assert replace(config, **NOT_OF_THE_SHAPE) == replace(PRESETS["smollm2-135m"].config, **NOT_OF_THE_SHAPE)
