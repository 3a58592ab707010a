"""Devices, dtypes and the folder for caches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from camelid.base.errors import CamelidError, ConfigError
from camelid.base.runtime import available_memory, home, parse_dtype, pick_device


def test_home_is_configurable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAMELID_HOME", str(tmp_path / "models"))
    assert home() == tmp_path / "models"
    monkeypatch.delenv("CAMELID_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "camelid"


def test_a_device_is_picked_or_named() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda")
    assert pick_device("auto") == pick_device(None)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not usable here") as caught:
        pick_device(name)
    assert caught.value.hint


def test_dtypes_have_names() -> None:
    assert parse_dtype("bfloat16") is torch.bfloat16
    assert parse_dtype(torch.float16) is torch.float16
    with pytest.raises(ConfigError) as caught:
        parse_dtype("bfloat")
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        parse_dtype(torch.int8)
    assert caught.value.hint == "did you mean 'bfloat16' or 'float32' or 'float16'?"


def test_free_memory_is_a_plausible_number() -> None:
    memory = available_memory()
    assert memory is None or 2**20 < memory < 2**50


def test_an_error_says_what_where_and_what_next() -> None:
    error = CamelidError("it broke", where="file.bin, byte 7", hint="mend it")
    assert str(error) == "it broke (file.bin, byte 7)\nhint: mend it"
