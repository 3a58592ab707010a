from collections.abc import Sequence

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
def attention_dim_factors() -> dict[str, int]:
    """The instruction sets that have attention kernels, and what a head's dimension must be a multiple of."""

def attention(
    instruction_set: str,
    starts: int,
    sizes: tuple[int, int, int, int],
    scale: float,
    q: tuple[int, int],
    k: tuple[int, int],
    v: tuple[int, int],
    out: tuple[int, int],
    num_threads: int,
    /,
) -> None: ...
def attention_gradients(
    instruction_set: str,
    starts: int,
    sizes: tuple[int, int, int, int],
    scale: float,
    q: tuple[int, int],
    k: tuple[int, int],
    v: tuple[int, int],
    out_grad: tuple[int, int],
    q_grad: tuple[int, int],
    k_grad: tuple[int, int],
    v_grad: tuple[int, int],
    num_threads: int,
    /,
) -> None: ...
def store_rows(
    new_keys: tuple[int, int],
    new_values: tuple[int, int],
    slots: int,
    count: int,
    keys: int,
    values: int,
    width: int,
    num_threads: int,
    /,
) -> None: ...
def paged_attention(
    instruction_set: str,
    sequences: int,
    tables: int,
    sizes: tuple[int, int, int, int, int],
    scale: float,
    reach: tuple[int, int],
    q: tuple[int, int],
    keys: tuple[int, int],
    values: tuple[int, int],
    out: tuple[int, int],
    num_threads: int,
    /,
) -> None: ...

norm_rows: int
"""Rows whose share of the gradient of a norm's weight is summed at once."""

def rms_norm(
    instruction_set: str, x: int, weight: int, eps: float, out: int, rows: int, width: int, num_threads: int, /
) -> None: ...
def rms_norm_gradients(
    instruction_set: str,
    x: int,
    weight: int,
    eps: float,
    out_grad: int,
    x_grad: int,
    weight_grads: int,
    rows: int,
    width: int,
    num_threads: int,
    /,
) -> None: ...
def swiglu(instruction_set: str, gate: int, up: int, out: int, count: int, num_threads: int, /) -> None: ...
def swiglu_gradients(
    instruction_set: str,
    gate: int,
    up: int,
    out_grad: int,
    gate_grad: int,
    up_grad: int,
    count: int,
    num_threads: int,
    /,
) -> None: ...
def rotate(
    instruction_set: str,
    x: tuple[int, int],
    cos: int,
    sin: int,
    back: bool,
    out: int,
    tokens: int,
    heads: int,
    dim: int,
    num_threads: int,
    /,
) -> None: ...
def softmax_shares(
    instruction_set: str, x: int, largest: int, totals: int, rows: int, width: int, num_threads: int, /
) -> None: ...
def greatest(
    instruction_set: str, x: tuple[int, int], rows: int, width: int, num_threads: int, /
) -> tuple[list[float], list[int]]: ...
def product(
    instruction_set: str,
    rows_and_depth: tuple[int, int],
    a: tuple[int, int, int],
    factors: list[tuple[tuple[int, int, int], int, int]],
    out_row: int,
    add: bool,
    num_threads: int,
    /,
) -> None: ...
def gated_product(
    instruction_set: str,
    rows_and_depth: tuple[int, int],
    x: tuple[int, int, int],
    gate: tuple[int, int, int],
    up: tuple[int, int, int],
    width: int,
    both: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
def transformer_stack(
    instruction_set: str,
    sizes: tuple[int, int, int, int, int, int],
    blocks: tuple[list[int], Sequence[float], Sequence[float], list[int], list[int]],
    place: tuple[int, int, int, int, int],
    wanted: tuple[int, int, int, int],
    x: int,
    cos: int,
    sin: int,
    workspace: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
