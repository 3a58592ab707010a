"""From a cold process to the first token: time and memory, against transformers and llama.cpp on the same weights.

    python benchmarks/load.py [--shapes 110m 1b] [--rounds 3] [--folder /tmp]

Random weights in real shapes, written once as a Hugging Face folder (the 110M in float32, the 1B in bfloat16) and as a
GGUF file of the same numbers. Every measurement is a new process that imports what it needs, opens the model, reads a
prompt of four ids and makes one token; files are in the page cache, the rounds take turns, the best of each counts.
camelid and transformers compute in the files' own dtype, so that nothing has to be copied. `import torch` is stated
beside, since both begin with it. Memory is the process's peak (VmHWM), which counts mapped pages of the files, and in
the second column only its own (RssAnon at the end). The limit is `import torch` and one reading of the weights at the
speed of memory. llama.cpp comes as `llama_cpp_peer` says, and is left out where it is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

SHAPES = {
    "110m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"num_key_value_heads": 12, "vocab_size": 32000, "tie_word_embeddings": False},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
}
DTYPES = {"110m": "float32", "1b": "bfloat16"}

END = """
import re
from pathlib import Path
status = Path("/proc/self/status").read_text()
kilobytes = {key: int(re.search(key + r":\\s+(\\d+)", status)[1]) for key in ("VmHWM", "RssAnon")}
print(loaded, time.perf_counter() - start, kilobytes["VmHWM"], kilobytes["RssAnon"])
"""
START = "import sys, time\nstart = time.perf_counter()\n"
PROGRAMS = {
    "import torch": "import torch\nloaded = time.perf_counter() - start\n",
    "camelid": """
from pathlib import Path
import torch
from camelid.checkpoint import load_model, open_checkpoint
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
engine = Engine(load_model(open_checkpoint(Path(sys.argv[1])), dtype=getattr(torch, sys.argv[3])))
loaded = time.perf_counter() - start
assert len(engine.generate([[1, 2, 3, 4]], SamplingParams(max_tokens=1, ignore_eos=True))[0].token_ids) == 1
""",
    "transformers": """
import torch
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
loaded = time.perf_counter() - start
ids = torch.tensor([[1, 2, 3, 4]])
with torch.inference_mode():
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=0
    )
assert out.shape == (1, 5)
""",
    "llama.cpp": """
import llama_cpp
import os
threads = os.cpu_count()
llama = llama_cpp.Llama(sys.argv[2], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
loaded = time.perf_counter() - start
llama.eval([1, 2, 3, 4])
llama.sample(temp=0.0)
""",
}


def write_models(shape: str, folder: Path) -> tuple[Path, Path]:
    """The folder and the GGUF file."""
    import torch

    from camelid.checkpoint import open_checkpoint, save_huggingface
    from camelid.checkpoint.gguf_write import save_gguf
    from camelid.model.llama import Llama, LlamaConfig
    from camelid.tokenizer.byte_pairs import BYTE_ALPHABET
    from camelid.tokenizer.gguf_vocab import from_gguf_metadata

    hf, gguf = folder / shape, folder / f"{shape}.gguf"
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, rms_norm_eps=1e-5)  # type: ignore[arg-type]
    dtype = getattr(torch, DTYPES[shape])
    model = Llama.from_config(config)
    model.initialize(seed=0)
    save_huggingface(model.to(dtype), hf)
    # llama.cpp wants a vocabulary; bytes are enough.
    tokens = list(BYTE_ALPHABET)
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": [1] * 256, "merges": []}
    tokenizer = from_gguf_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    with closing(open_checkpoint(hf)) as checkpoint:
        save_gguf(checkpoint, gguf, tokenizer=tokenizer)
    return hf, gguf


def measure(name: str, arguments: list[str]) -> tuple[float, float, float, float]:
    """Seconds until loaded and until the first token, and bytes of peak and of own memory, of a new process."""
    program = START + PROGRAMS[name] + END
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    loaded, first, peak, own = map(float, done.stdout.split()[-4:])
    return loaded, first, peak * 1024, own * 1024


def read_bandwidth() -> float:
    """Bytes per second that all threads together read from memory."""
    from decode import read_bandwidth as measured

    return measured()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    names = [name for name in PROGRAMS if name != "llama.cpp" or importlib.util.find_spec("llama_cpp")]
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            hf, gguf = write_models(shape, Path(scratch))
            num_bytes = sum(file.stat().st_size for file in hf.glob("*.safetensors"))
            runs: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in names}
            for _ in range(options.rounds):
                for name in names:
                    runs[name].append(measure(name, [str(hf), str(gguf), DTYPES[shape]]))
        best = {name: min(found, key=lambda one: one[1]) for name, found in runs.items()}
        torch_alone = best["import torch"][0]
        print(f"{shape}, {DTYPES[shape]}, {num_bytes / 1e9:.2f} GB of weights, best of {options.rounds}")
        print(f"{'':14}{'loaded, s':>10}{'first token, s':>16}{'beyond torch, s':>17}{'peak, GB':>10}{'own, GB':>9}")
        for name in names:
            loaded, first, peak, own = best[name]
            beyond = f"{first - torch_alone:17.2f}" if name not in ("import torch", "llama.cpp") else " " * 17
            print(f"{name:14}{loaded:10.2f}{first:16.2f}{beyond}{peak / 1e9:10.2f}{own / 1e9:9.2f}", flush=True)
        limit = torch_alone + num_bytes / read_bandwidth()
        ours, peer = best["camelid"][1], best["transformers"][1]
        result = {"name": f"first_token_cold_{shape}_s", "ours": round(ours, 2), "peer": round(peer, 2)}
        result |= {"ratio": round(peer / ours, 3), "limit": round(limit, 2), "share_of_limit": round(limit / ours, 3)}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
