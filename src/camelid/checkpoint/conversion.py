"""A checkpoint of any format written in another one, with what travels with the weights.

convert(Path("Llama-2-7b"), Path("llama-2-7b-hf"), to="huggingface")
convert(Path("llama-2-7b-hf"), Path("llama-2-7b.gguf"), to="gguf", quantize="q4_k_m")
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError, NotFoundError, TokenizerError, did_you_mean
from camelid.base.files import sha256
from camelid.base.progress import progress
from camelid.base.runtime import parse_dtype
from camelid.checkpoint.lineage import LINEAGE, write_file_lineage
from camelid.checkpoint.load import open_checkpoint
from camelid.checkpoint.merged import MergedCheckpoint
from camelid.model.lora import LoraAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.checkpoint.base import Checkpoint
    from camelid.tokenizer import Tokenizer

TARGETS: Final = ("huggingface", "meta", "gguf")
"""The formats that can be written."""


def convert(
    source: Path,
    target: Path,
    *,
    to: str,
    dtype: str | None = None,
    quantize: str | None = None,
    model_parallel: int = 1,
    tokenizer: bool = True,
    adapter: Path | None = None,
) -> bool:
    """Write a checkpoint in another format, with its tokenizer, chat template and generation settings.

    No more than one tensor is in memory. The target appears under its name only once it is complete; `lineage.json` in
    it, or `<target>.lineage.json` beside a GGUF file, holds its hashes and those of the files it was made from.

    Args:
        source: a folder or file of any format.
        target: a folder, or a file for GGUF, that does not exist yet.
        to: one of `TARGETS`.
        dtype: of the written weights; None: each as it is.
        quantize: a mixture of block formats, for GGUF.
        model_parallel: number of shards, for Meta's format.
        tokenizer: False: go on without one.
        adapter: a LoRA adapter's folder, as PEFT has it, that is merged into the weights.

    Returns:
        Whether the target holds the very numbers of the source, so that they compute the same.

    Raises:
        ConfigError: the target exists, an option that its format does not have, or a model that it has no place for.
        NotFoundError: there is no source, or no such format.
        FormatError: the source or the adapter is damaged.
        EngineError: the adapter does not fit the model.
        TokenizerError: the source has no tokenizer, or a broken one.
        ResourceError: not enough disk space.
    """
    if to not in TARGETS:
        raise NotFoundError(f"there is no format named '{to}' to write", hint=did_you_mean(to, TARGETS))
    if quantize is not None and to != "gguf":
        raise ConfigError("only GGUF files are written quantised", where="quantize", hint="add --to gguf")
    if model_parallel != 1 and to != "meta":
        raise ConfigError("only Meta's format has model-parallel shards", where="model_parallel", hint="add --to meta")
    _check_free(target)
    change = LoraAdapter.open(adapter) if adapter is not None else None
    with closing(open_checkpoint(source)) as opened:
        checkpoint = MergedCheckpoint(opened, change) if change is not None else opened
        travelling = _load_tokenizer(checkpoint) if tokenizer else None
        facts = _origin(checkpoint)
        facts |= {"adapter": {"name": adapter.resolve().name, "digest": change.digest()}} if adapter and change else {}
        facts |= {"quantize": quantize} if quantize else {}
        facts |= {"dtype": str(parse_dtype(dtype)).removeprefix("torch.")} if dtype else {}
        parts: dict[str, Any] = {
            "tokenizer": travelling,
            "chat_template": checkpoint.chat_template,
            "generation_config": checkpoint.generation_config,
            "lineage": facts,
        }
        if to == "gguf":
            from camelid.checkpoint.gguf_write import save_gguf

            save_gguf(checkpoint, target, quantize=quantize, dtype=dtype, **parts)
            write_file_lineage(target.resolve(), facts)
        elif to == "meta":
            from camelid.checkpoint.meta_save import save_meta

            written = parse_dtype(dtype) if dtype else None
            parts["preprocessor_config"] = checkpoint.preprocessor_config
            save_meta(checkpoint, target, model_parallel=model_parallel, dtype=written, **parts)
        else:
            from camelid.checkpoint.save import save_huggingface

            parts["preprocessor_config"] = checkpoint.preprocessor_config
            save_huggingface(checkpoint, target, dtype=parse_dtype(dtype) if dtype else None, **parts)
        return (
            quantize is None and change is None and facts.get("dtype") in (None, "float32", *_only_format(checkpoint))
        )


def _check_free(target: Path) -> None:
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if (target.exists() or target.is_symlink()) and not is_empty_folder:
        raise ConfigError(
            "there is something of this name already",
            where=target,
            hint="choose another name; a conversion replaces nothing",
        )


def _only_format(checkpoint: Checkpoint) -> set[str]:
    """The dtype that every tensor has, if they all have one."""
    formats = {info.format for info in checkpoint.tensors.values()}
    return formats if len(formats) == 1 else set()


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    try:
        return _original(checkpoint.load_tokenizer(), checkpoint.path)
    except (NotFoundError, TokenizerError) as error:
        raise TokenizerError(
            f"the model's tokenizer cannot be taken along: {error.what}",
            where=error.where or checkpoint.path,
            hint=f"{error.hint}; or go on without it: --without-tokenizer" if error.hint else "--without-tokenizer",
        ) from error


def _original(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The `tokenizer.model` that a tokenizer.json beside it was made from, which every format has a place for.

    It counts as that if it has the same tokens under the same ids.
    """
    from camelid.tokenizer.library import LibraryTokenizer
    from camelid.tokenizer.load import load_tokenizer

    file = folder / "tokenizer.model"
    if not isinstance(tokenizer, LibraryTokenizer) or not file.is_file():
        return tokenizer
    original = load_tokenizer(file)
    same = original.vocab_size == tokenizer.vocab_size and original.special.ids == tokenizer.special.ids
    ids = range(tokenizer.vocab_size if same else 0)
    same = same and all(original.token_bytes(i) == tokenizer.token_bytes(i) for i in ids)
    return original if same else tokenizer


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the lineage says of the source: its format and the hashes of its files, and of its own lineage."""
    files = list(checkpoint.files)
    if (own := checkpoint.path / LINEAGE).is_file():
        files.append(own)
    hashes = {}
    with progress(f"hashing {checkpoint.path.name}", sum(file.stat().st_size for file in files)) as shown:
        for file in files:
            hashes[file.name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
            shown.advance(file.stat().st_size)
    return {"converted_from": {"name": checkpoint.path.resolve().name, "format": checkpoint.format, "files": hashes}}
