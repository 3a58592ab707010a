from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import logits, tiny_config, tiny_model

from camelid.base.errors import ConfigError, FormatError, NotFoundError, ResourceError
from camelid.checkpoint import Checkpoint, TensorInfo, load, load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.huggingface import HuggingFaceCheckpoint
from camelid.checkpoint.load import required_memory
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.model.llama import Llama

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from camelid.tokenizer import Tokenizer

UP = "model.layers.0.mlp.up_proj.weight"


class InMemory(Checkpoint):
    """A checkpoint of tensors at hand, dense or packed."""

    format = "memory"

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor | PackedTensor], **config: Any) -> None:
        self.path = path
        self._held = dict(tensors)
        self._config = tiny_config().to_hf() | config

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        infos = {}
        for name, value in self._held.items():
            packed = isinstance(value, PackedTensor)
            data = value.data if packed else value
            format_name = value.format if packed else str(value.dtype).removeprefix("torch.")
            infos[name] = TensorInfo(name, tuple(value.shape), format_name, data.nbytes)
        return infos

    def read(self, name: str) -> torch.Tensor | PackedTensor:
        return self._held[name]

    def load_tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    @property
    def chat_template(self) -> str | None:
        return None

    @property
    def generation_config(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def tensors(**model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in tiny_model(**model).named_parameters()}


def packed_tensors() -> dict[str, torch.Tensor | PackedTensor]:
    """The tiny model with every matrix in q8_0 blocks."""
    codec = FORMATS.load("q8_0")
    return {name: codec.pack(tensor) if tensor.ndim == 2 else tensor for name, tensor in tensors().items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_huggingface(tiny_model(), tmp_path / "model with spaces")
    return tmp_path / "model with spaces"


def test_dense_tensors_of_the_right_dtype_are_never_copied(saved: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(saved)
    views = {name: checkpoint.read(name) for name in checkpoint.tensors}

    model = load_model(checkpoint, dtype=torch.float32)
    checkpoint.close()

    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == views[name].data_ptr(), name
        assert parameter.requires_grad


def test_training_a_loaded_model_never_changes_its_file(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    with closing(open_checkpoint(saved)) as checkpoint:
        model = load_model(checkpoint)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)

    assert (saved / "model.safetensors").read_bytes() == before


MEASURE = """
import sys
from pathlib import Path
import torch
from camelid.checkpoint import load_model, open_checkpoint
from camelid.checkpoint import load

def own_bytes():
    return sum(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

checkpoint = open_checkpoint(Path(sys.argv[1]))
fill = load._fill
def watched(*arguments, **keywords):
    global peak
    fill(*arguments, **keywords)
    peak = max(peak, own_bytes())
load._fill = watched
for dtype in (torch.float16, torch.float32):
    before, peak = own_bytes(), 0
    model = load_model(checkpoint, dtype=dtype)
    print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_no_memory_beside_the_parameters(tmp_path: Path) -> None:
    """Of 40 MB in float16, all stay in the file, or all are converted: never both."""
    config = replace(tiny_config(), vocab_size=10_000, hidden_size=1024, head_dim=8, num_hidden_layers=1)
    model = Llama.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    save_huggingface(model, tmp_path / "large", dtype=torch.float16)
    numbers = sum(parameter.numel() for parameter in model.parameters())

    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    as_it_is, converted = (int(line) for line in done.stdout.split())
    assert as_it_is < 8 << 20
    assert 4 * numbers * 0.9 <= converted <= 4 * numbers + (8 << 20)


def test_dtype_and_device_are_as_asked(saved: Path) -> None:
    with closing(open_checkpoint(saved)) as checkpoint:
        model = load_model(checkpoint, device="cpu", dtype=torch.bfloat16)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_packed_weights_stay_packed_if_asked_and_give_the_same_logits(tmp_path: Path) -> None:
    checkpoint = InMemory(tmp_path, packed_tensors())

    unpacked = load_model(checkpoint, dtype=torch.float32, packed=False)
    packed = load_model(checkpoint, dtype=torch.float32, packed=True)

    assert isinstance(packed.get_submodule("model.layers.0.mlp.up_proj").packed, PackedTensor)
    assert UP in dict(unpacked.named_parameters())
    assert UP not in dict(packed.named_parameters())
    assert torch.allclose(logits(packed), logits(unpacked), atol=1e-4)


@pytest.mark.parametrize("has_kernel", [False, True])
def test_without_a_wish_weights_stay_packed_where_a_kernel_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_kernel: bool
) -> None:
    monkeypatch.setattr(type(FORMATS.load("q8_0")), "has_kernel", lambda self, device: has_kernel)

    model = load_model(InMemory(tmp_path, packed_tensors()), packed=None)

    assert (UP not in dict(model.named_parameters())) == has_kernel


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    held = tensors()
    del held[UP]

    with pytest.raises(FormatError, match=f"missing in the checkpoint: '{UP}'"):
        load_model(InMemory(tmp_path, held))


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"and 16 more"):
        load_model(InMemory(tmp_path, {"model.norm.weight": torch.ones(32), "lm_head.weight": torch.ones(96, 32)}))


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    held = tensors() | {"model.layers.2.input_layernorm.weight": torch.ones(32)}

    with pytest.raises(FormatError, match=r"no place for: 'model\.layers\.2\.input_layernorm\.weight'"):
        load_model(InMemory(tmp_path, held))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    held = tensors() | {UP: torch.ones(64, 33)}

    with pytest.raises(FormatError, match=r"up_proj\.weight' has the shape \[64, 33\] where .* \[64, 32\]"):
        load_model(InMemory(tmp_path, held))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no floating-point numbers"):
        load_model(InMemory(tmp_path, tensors() | {UP: torch.ones(64, 32, dtype=torch.int8)}))


def test_buffers_that_old_converters_wrote_are_ignored(tmp_path: Path) -> None:
    held = tensors() | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}

    assert torch.equal(logits(load_model(InMemory(tmp_path, held))), logits(tiny_model()))


def test_a_tied_copy_must_be_equal(tmp_path: Path) -> None:
    held = tensors(tied=True)
    equal = held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    different = held | {"lm_head.weight": torch.ones(96, 32)}

    model = load_model(InMemory(tmp_path, equal, tie_word_embeddings=True))

    assert torch.equal(logits(model), logits(tiny_model(tied=True)))
    with pytest.raises(FormatError, match=r"ties 'lm_head\.weight'"):
        load_model(InMemory(tmp_path, different, tie_word_embeddings=True))


def test_a_model_without_an_architecture_here(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no architecture named 'lama'(.|\n)*did you mean 'llama'"):
        load_model(InMemory(tmp_path, tensors(), model_type="lama"))
    with pytest.raises(ConfigError, match="no 'model_type'"):
        load_model(InMemory(tmp_path, tensors(), model_type=None))


def test_a_config_of_endless_layers_is_refused_before_they_are_built(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="asks for 16000 layers"):
        load_model(InMemory(tmp_path, tensors(), num_hidden_layers=16_000))


def test_what_the_weights_take(tmp_path: Path) -> None:
    numbers = sum(tensor.numel() for tensor in tensors().values())
    dense, packed = InMemory(tmp_path, tensors()), InMemory(tmp_path, packed_tensors())
    vectors = sum(tensor.numel() for tensor in tensors().values() if tensor.ndim == 1)

    assert required_memory(dense, torch.float32) == 4 * numbers
    assert required_memory(dense, torch.bfloat16) == 2 * numbers
    assert required_memory(packed, torch.float32, packed=False) == 4 * numbers
    assert required_memory(packed, torch.float32, packed=True) == (numbers - vectors) // 32 * 34 + 4 * vectors


def test_a_model_that_does_not_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda: 1000)

    with pytest.raises(ResourceError, match=r"take .* kB as float32, 1\.0 kB are free(.|\n)*hint: load it as bfloat16"):
        load_model(InMemory(tmp_path, tensors()))


def test_the_checkpoints_own_dtype_where_float32_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = InMemory(tmp_path, tensors(dtype=torch.bfloat16), torch_dtype="bfloat16")
    monkeypatch.setattr(load, "available_memory", lambda: required_memory(checkpoint, torch.bfloat16))

    with caplog.at_level(logging.WARNING, logger="camelid"):
        model = load_model(checkpoint)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert "does not fit into memory as float32" in caplog.text


def test_a_folder_is_recognised_by_what_is_in_it(saved: Path) -> None:
    renamed = saved.rename(saved.parent / "looks-like.gguf")

    with closing(open_checkpoint(renamed)) as checkpoint:
        assert checkpoint.format == "huggingface"


def test_a_missing_path_names_its_neighbour(saved: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such file or folder(.|\n)*did you mean .*model with spaces"):
        open_checkpoint(saved.parent / "model with space")


def test_a_folder_above_the_model_names_it(saved: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean .*model with spaces"):
        open_checkpoint(saved.parent)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the super-user may read everything")
def test_a_folder_that_may_not_be_read(saved: Path) -> None:
    (saved / "config.json").chmod(0)

    with pytest.raises(ResourceError, match="may not be read"):
        open_checkpoint(saved)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no model here"):
        open_checkpoint(tmp_path)


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(NotFoundError, match=r"neither config\.json, params\.json nor a GGUF file"):
        open_checkpoint(tmp_path)


def test_one_file_of_a_model_points_to_its_folder(saved: Path) -> None:
    with pytest.raises(FormatError, match=r"one file of a model(.|\n)*open its folder"):
        open_checkpoint(saved / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (struct.pack("<I", 0x616B3432) + bytes(300), r"a llama2\.c checkpoint of a later version"),
        (b"PK\x03\x04" + bytes(100), r"a file of torch\.save"),
        (b"\x80\x02\x8a\x0a" + bytes(100), r"a file of torch\.save"),
        (b"tjgg" + bytes(100), "a file of GGUF's predecessors"),
    ],
)
def test_formats_that_are_not_readable_yet(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)

    for path in (tmp_path / "model.bin", tmp_path):
        with pytest.raises(FormatError, match=what + r".* not readable(.|\n)*hint: "):
            open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"hello, world" * 10])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)

    with pytest.raises(FormatError, match="no model file"):
        open_checkpoint(tmp_path / "x")


def test_several_gguf_files_in_one_folder(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(FormatError, match=r"several GGUF files: 'a\.gguf', 'b\.gguf'"):
        open_checkpoint(tmp_path)


def test_a_truncated_gguf_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))

    with pytest.raises(FormatError):
        open_checkpoint(tmp_path)
