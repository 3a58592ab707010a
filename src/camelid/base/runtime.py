"""Where and how tensors are computed: device, dtype, threads, and the folder camelid keeps its files in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from camelid.base.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def home() -> Path:
    """The folder for models and caches: $CAMELID_HOME, or camelid/ in the user's cache folder."""
    if configured := os.environ.get("CAMELID_HOME"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camelid"


def pick_device(name: str | None = None) -> torch.device:
    """The named device ("cpu", "cuda", "cuda:1", "mps"), or the best one present.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"the device '{name}' is not usable here", hint="use 'cpu', or 'auto' to pick") from error
    return device


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16".

    Raises:
        ConfigError: not one of float32, bfloat16, float16.
    """
    import torch

    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'", hint=did_you_mean(name, DTYPES))
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def available_memory() -> int | None:
    """Bytes of memory that can be taken without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
