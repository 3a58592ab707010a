"""Peak memory of converting a 70B: the real tensor sizes at 2, 4 and 8 layers, into every format and back from Meta's.

    python benchmarks/convert_memory.py --layers 2 4 8 --folder /tmp

The source is a bfloat16 Hugging Face folder of Llama 3.1 70B's shape with fewer layers. It is sparse: a few random
pages in each tensor, holes elsewhere, which read as zeros; the target is written in full and deleted. "back" is from
the eight shards, which it writes first, to a Hugging Face folder. Peak memory is the process's VmHWM, which counts
mapped pages of files as well as its own, minus that of a process that only imported torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

TARGETS = {
    "huggingface": ["--to", "huggingface"],
    "meta": ["--to", "meta", "--model-parallel", "8"],
    "back": ["--to", "huggingface"],
    "gguf": ["--to", "gguf"],
    "q8_0": ["--to", "gguf", "--quantize", "q8_0"],
}
PAGES = 16
"""Random pages in each tensor."""

MEASURE = """
import sys
from pathlib import Path
import torch
sys.argv = ["camelid", *sys.argv[1:]]
from camelid.cli.main import main
try:
    if len(sys.argv) > 1:
        main()
except SystemExit as exit:
    assert not exit.code, exit.code
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def write_sparse(folder: Path, num_layers: int) -> int:
    """A folder of Llama 3.1 70B's shape with fewer layers; the bytes of its weights."""
    import torch

    from camelid.checkpoint.safetensors import header_bytes
    from camelid.model.llama import Llama
    from camelid.model.presets import PRESETS

    config = replace(PRESETS["llama-3.1-70b"].config, num_hidden_layers=num_layers)
    with torch.device("meta"):
        model = Llama.from_config(config)
    tensors = [(name, torch.bfloat16, tuple(value.shape)) for name, value in model.named_parameters()]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    header = header_bytes(tensors, {"format": "pt"})
    position = len(header)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for _, _, shape in tensors:
            size = 2 * torch.Size(shape).numel()
            for page in range(PAGES):
                file.seek(position + size * page // PAGES // 2 * 2)
                file.write((torch.randn(2048) / 50).bfloat16().view(torch.uint8).numpy().tobytes())
            position += size
        file.truncate(position)
    return position - len(header)


def measure(*arguments: str) -> int:
    """Bytes of peak memory of a process that runs `camelid` with these arguments, or does nothing but import torch."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return int(done.stdout.split()[-1]) * 1024


def convert(source: Path, written: Path, target: str) -> int:
    """Bytes of peak memory."""
    return measure("convert", str(source), str(written), "--without-tokenizer", *TARGETS[target])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    idle = measure()
    print(f"a process that has imported torch: {idle / 1e9:.2f} GB")
    for num_layers in options.layers:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            source = Path(scratch, "source")
            weights = write_sparse(source, num_layers)
            for target in options.targets:
                written, shards = Path(scratch, "written"), Path(scratch, "shards")
                if target == "back":
                    convert(source, shards, "meta")
                started = time.monotonic()
                peak = convert(shards if target == "back" else source, written, target)
                seconds = time.monotonic() - started
                for path in (written, shards):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                print(
                    f"{num_layers} layers, {weights / 1e9:.1f} GB → {target}: "
                    f"peak {(peak - idle) / 1e9:.2f} GB beside torch, {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
