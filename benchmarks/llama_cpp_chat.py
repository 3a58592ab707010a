"""llama.cpp's own chat renderer (common/chat.cpp and its Jinja engine), for the tests that compare with it.

No package carries it built; the source distribution of llama-cpp-python has the sources, and its libraries what they
link to. Building takes a minute and a half of one core:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    LLAMA_CPP_SOURCE=llama_cpp_python-0.3.36/vendor/llama.cpp python -m pytest tests/tokenizer/test_chat_llama_cpp.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAIN = Path(__file__).with_suffix(".cpp")
SOURCES = (
    *("chat*.cpp", "json*.cpp", "log.cpp", "peg-parser.cpp", "trie.cpp", "unicode.cpp", "common.cpp"),
    *("jinja/*.cpp", "parsers/*.cpp"),
)
"""Of llama.cpp's folder `common`: the renderer, and what it calls."""


def build(source: Path, program: Path) -> None:
    """Compile the renderer.

    Args:
        source: llama.cpp's repository, of the version that llama-cpp-python is built from.
        program: where it goes.

    Raises:
        subprocess.CalledProcessError: the compiler refuses it.
    """
    common = source / "common"
    folders = [common, source / "vendor", source / "include", source / "ggml" / "include"]
    libraries = Path(os.environ.get("LLAMA_CPP_LIB_PATH", Path(llama_cpp.__file__).parent / "lib"))
    command = ["c++", "-std=c++17", "-O0", "-ffunction-sections", *(f"-I{folder}" for folder in folders), str(MAIN)]
    command += [str(path) for pattern in SOURCES for path in sorted(common.glob(pattern))]
    # common.cpp also calls parts that are not built here; what nothing reaches is left out with its references
    command += ["-Wl,--gc-sections", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-pthread"]
    command += ["-lllama", "-lggml", "-lggml-base", "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)


class LlamaCppChat:
    """The renderer as a process."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        bos: str = "",
        eos: str = "",
        **variables: Any,
    ) -> str:
        """The text of a conversation, as `/apply-template` of `llama-server --jinja` gives it.

        Raises:
            ValueError: llama.cpp refuses the conversation, or cannot work with the template.
        """
        request = {"template": template, "messages": messages, "tools": tools, "variables": variables}
        request |= {"add_generation_prompt": add_generation_prompt, "bos": bos, "eos": eos}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate()
