def instruction_sets() -> list[str]:
    """What this processor can run, best first; the last is plain C++."""

def formats() -> dict[str, int]:
    """The weight formats that have kernels, and the bytes of one block."""

def unpack(
    format: str, instruction_set: str, weights: int, out: int, rows: int, columns: int, num_threads: int, /
) -> None: ...
def matmul(
    format: str,
    instruction_set: str,
    x: int,
    weights: int,
    out: int,
    batch: int,
    rows: int,
    columns: int,
    num_threads: int,
    /,
) -> None: ...
