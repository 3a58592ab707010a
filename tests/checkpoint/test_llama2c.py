"""llama2.c's .bin, read: against a writer that follows the format's description word by word."""

from __future__ import annotations

import shutil
import struct
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import logits
from tiny_llama2c import llama2_c_file, tiny

from camelid.base.errors import FormatError, NotFoundError, TokenizerError
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.llama2c import Llama2CCheckpoint, is_llama2_c

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_the_model_that_was_written(tmp_path: Path, tied: bool, kv_heads: int) -> None:
    model = tiny(tied=tied, kv_heads=kv_heads)
    (tmp_path / "any name").write_bytes(llama2_c_file(model))

    with closing(open_checkpoint(tmp_path / "any name")) as checkpoint:
        loaded = load_model(checkpoint)
        assert checkpoint.format == "llama2.c"
        assert checkpoint.config["max_position_embeddings"] == 64

    assert all(torch.equal(value, model.get_parameter(name)) for name, value in loaded.named_parameters())
    assert torch.equal(logits(loaded), logits(model))


def test_a_folder_with_one_such_file_and_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "stories.bin").write_bytes(llama2_c_file(tiny()))

    with closing(open_checkpoint(tmp_path)) as checkpoint:
        with pytest.raises(TokenizerError, match=r"no vocabulary(.|\n)*put Llama 2's tokenizer\.model"):
            checkpoint.load_tokenizer()
        shutil.copy(LLAMA_2, tmp_path)
        assert checkpoint.load_tokenizer().vocab_size == 32_000


def test_to_huggingface(tmp_path: Path) -> None:
    model = tiny(tied=True)
    (tmp_path / "x.bin").write_bytes(llama2_c_file(model))

    with closing(open_checkpoint(tmp_path / "x.bin")) as checkpoint:
        save_huggingface(checkpoint, tmp_path / "hf")
    with closing(open_checkpoint(tmp_path / "hf")) as checkpoint:
        again = load_model(checkpoint)

    assert torch.equal(logits(again), logits(model))
    assert again.config.eos_token_id == (1, 2)


def test_reading_copies_only_queries_and_keys(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(llama2_c_file(tiny()))
    checkpoint = Llama2CCheckpoint(tmp_path / "x.bin")

    def addresses(name: str) -> set[int]:
        one, other = checkpoint.read(name), checkpoint.read(name)
        return {one.data_ptr(), other.data_ptr()}  # type: ignore[union-attr]

    assert len(addresses("model.layers.1.self_attn.v_proj.weight")) == 1
    assert len(addresses("model.layers.1.self_attn.q_proj.weight")) == 2


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(llama2_c_file(tiny()))

    with pytest.raises(NotFoundError, match=r"no tensor 'lm_hed\.weight'(.|\n)*did you mean 'lm_head\.weight'"):
        Llama2CCheckpoint(tmp_path / "x.bin").read("lm_hed.weight")


@pytest.mark.parametrize("length", [0, 27, 28, 1000, -4, -1])
def test_a_file_of_another_size_is_none(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.bin").write_bytes(llama2_c_file(tiny())[:length])

    with pytest.raises(FormatError, match="no model file"):
        open_checkpoint(tmp_path / "x.bin")


@pytest.mark.parametrize("sizes", [(-1, 1, 1, 1, 1, 1, 1), (8, 16, 1, 3, 3, 10, 4), (8, 16, 1, 4, 3, 10, 4), (0,) * 7])
def test_sizes_that_no_model_has(sizes: tuple[int, ...]) -> None:
    assert not is_llama2_c(struct.pack("<7i", *sizes), 28)
