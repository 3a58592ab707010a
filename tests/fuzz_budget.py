"""How long the fuzzers run: a little in the suite, as long as wanted under `make fuzz`."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("CAMELID_FUZZ", "1"))


def budget(examples: int) -> Any:
    """Settings for so many examples, times the environment's CAMELID_FUZZ."""
    return settings(
        max_examples=examples * TIMES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
