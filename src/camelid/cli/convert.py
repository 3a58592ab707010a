"""`camelid convert`: write a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camelid.base.errors import CamelidError
from camelid.cli.verify import MaxKL, MaxLogit, report

app = typer.Typer(add_completion=False, help="Write a model in another format: Hugging Face's, Meta's or GGUF.")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder or file of any format, or a model that was pulled.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What is written; it must not exist yet.")],
    to: Annotated[str, typer.Option("--to", help="huggingface, meta or gguf.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; without it weights stay what they are.")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="For gguf: q8_0, q6_k, q5_k_m, q4_k_m, q4_0 and others.")] = None,
    model_parallel: Annotated[int, typer.Option(min=1, help="For meta: number of shards.")] = 1,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter's folder, as PEFT writes it, to merge into the weights.")
    ] = None,
    without_tokenizer: Annotated[bool, typer.Option(help="Go on if the source has no tokenizer.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Load both afterwards and compare them.")] = False,
    max_kl: MaxKL = None,
    max_logit: MaxLogit = None,
) -> None:
    """Write a model in another format, with its tokenizer, chat template and generation settings.

    With --adapter the weights are those of the adapted model: the source stays as it is, and so can be had without.

    With --verify both are compared as `camelid verify` does: exact unless the target is a lossy one, which may have a
    mean KL divergence of 0.1.
    """
    if verify and adapter is not None:
        raise CamelidError(
            "--verify compares with the source, which an adapter changes",
            where="--adapter",
            hint="merge into a folder first, and verify what you make of that",
        )
    from camelid.checkpoint.catalogue import resolve
    from camelid.checkpoint.conversion import convert as write

    lossless = write(
        resolve(source),
        target,
        to=to,
        dtype=dtype,
        quantize=quantize,
        model_parallel=model_parallel,
        tokenizer=not without_tokenizer,
        adapter=adapter,
    )
    print(target)
    if verify:
        from camelid.evaluate.verify import LOSSLESS, LOSSY, Budget
        from camelid.evaluate.verify import verify as compare

        given = max_kl is not None or max_logit is not None
        default = LOSSLESS if lossless else LOSSY
        report(compare(source, target), Budget(max_logit=max_logit, max_kl=max_kl) if given else default)
