"""Models in several GGUF files: whole, incomplete, mixed up and damaged."""

from __future__ import annotations

import random
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch

from camelid.base.errors import CamelidError, FormatError, NotFoundError
from camelid.checkpoint import load_model, open_checkpoint
from camelid.checkpoint.gguf import GGUFCheckpoint
from camelid.codecs import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, FFN, VOCAB = 32, 64, 48


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,), "output": (VOCAB, HIDDEN)}
    layer = {"attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN)}
    layer |= {"attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,), "ffn_gate": (FFN, HIDDEN)}
    layer |= {"ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, per_part: int) -> list[Path]:
    """A model of 12 tensors, `per_part` in each file (0: one file); the files."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=per_part)
    for key, value in {"context_length": 64, "embedding_length": HIDDEN, "block_count": 1}.items():
        writer.add_uint32(f"llama.{key}", value)
    for key, value in {"feed_forward_length": FFN, "attention.head_count": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, values in tensors().items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


@pytest.mark.parametrize("per_part", [5, 4, 1])
def test_all_parts_together_are_the_model(tmp_path: Path, per_part: int) -> None:
    (tmp_path / "one").mkdir()
    (whole,) = write(tmp_path / "one" / "m.gguf", 0)
    (tmp_path / "many").mkdir()
    parts = write(tmp_path / "many" / "m.gguf", per_part)
    assert len(parts) > 1
    with closing(GGUFCheckpoint(whole)) as one, closing(GGUFCheckpoint(parts[0])) as many:
        assert many.config == one.config
        assert many.files == parts
        assert many.tensors == one.tensors
        for name in one.tensors:
            assert torch.equal(many.read(name), one.read(name)), name


def test_a_folder_with_the_parts_of_one_model_opens_as_that_model(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    with closing(open_checkpoint(tmp_path)) as checkpoint:
        assert checkpoint.path == parts[0]
        load_model(checkpoint)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    parts[1].unlink()
    with pytest.raises(NotFoundError, match="part 2 of 3") as caught:
        GGUFCheckpoint(parts[0])
    assert caught.value.where == str(parts[1])


def test_a_later_part_leads_to_the_first(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    with pytest.raises(FormatError, match="part 3 of 3") as caught:
        open_checkpoint(parts[2])
    assert parts[0].name in str(caught.value.hint)


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match="not named like one"):
        GGUFCheckpoint(renamed)


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(content)
    with pytest.raises(FormatError, match="not part 2 of 3") as caught:
        GGUFCheckpoint(parts[0])
    assert caught.value.where == str(parts[1])


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 6)
    (tmp_path / "other").mkdir()
    others = write(tmp_path / "other" / "m.gguf", 7)
    assert len(parts) == len(others) == 2
    others[1].write_bytes(parts[1].read_bytes())
    with pytest.raises(FormatError, match=r"is in 'm-00001-of-00002\.gguf' already"):
        GGUFCheckpoint(others[0])


def test_a_truncated_part_is_refused_with_file_and_offset(tmp_path: Path) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    parts[2].write_bytes(parts[2].read_bytes()[:-200])
    with pytest.raises(FormatError) as caught:
        GGUFCheckpoint(parts[0])
    assert f"{parts[2]}, byte " in str(caught.value.where)


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_in_a_header_opens_or_is_refused(tmp_path: Path, seed: int) -> None:
    parts = write(tmp_path / "m.gguf", 4)
    chance = random.Random(seed)
    damaged = chance.choice(parts)
    content = bytearray(damaged.read_bytes())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(min(len(content), 700))] = chance.choice([0, 1, 255, chance.randrange(256)])
    damaged.write_bytes(content)
    with suppress(CamelidError), closing(GGUFCheckpoint(parts[0])) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)


def test_rare_formats_are_read_through_the_gguf_package(tmp_path: Path) -> None:
    codec = FORMATS.load("iq4_xs")
    generator = np.random.default_rng(1)
    raw = generator.integers(0, 256, (256, 256 // codec.block_size * codec.block_bytes), dtype=np.uint8)
    raw[:, 1] &= 0b10111011  # a finite scale
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"context_length": 64, "embedding_length": 256, "block_count": 1}.items():
        writer.add_uint32(f"llama.{key}", value)
    for key, value in {"feed_forward_length": 256, "attention.head_count": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=gguf.GGMLQuantizationType.IQ4_XS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with closing(GGUFCheckpoint(path)) as checkpoint:
        packed = checkpoint.read("model.embed_tokens.weight")
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.IQ4_XS)
        assert torch.equal(codec.unpack(packed), torch.from_numpy(expected))
