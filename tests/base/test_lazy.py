"""Packages give out their names on first use."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    "package", ["camelid", "camelid.tokenizer", "camelid.checkpoint", "camelid.data", "camelid.train"]
)
def test_every_exported_name_is_there_and_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == dir(module)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'camelid' has no attribute 'lod'"):
        sys.modules["camelid"].lod  # noqa: B018
