"""The command ``ckpt lora concat``: joins adapters of one base into one adapter."""

from __future__ import annotations

from typing import Annotated

import typer

from ...options import Memory
from ...writing import AdapterWriting, numbers
from ._options import Adapters, KeysOf, Weights

NAME = "lora concat"
HELP = """Join adapters of one base into one adapter: their changes are added with weights, or merged by KnOTS.

The factors A are stacked along the rank. The factors B are joined side by side, each multiplied by its weight and
scale, so that the new scale is 1 (lora_alpha is r). The sum is exact, unlike a mean of factors. A module that only one
adapter has keeps its rank. The output is a folder that PEFT opens.

--method knots merges adapters of different tasks in a basis that all their changes share (KnOTS). --merge selects the
merge method: ties keeps the largest values of each change, and takes the mean of the values with the majority's sign;
dare_ties keeps values at random, and enlarges them to compensate for the others; task_arithmetic is the sum.

Adapters are folders that PEFT or mlx-lm wrote, or files with kohya's or diffusers' key names. DoRA, modules_to_save,
biases in two adapters, and adapters of different bases are errors.
"""
EXAMPLES = """\b
Examples:
  ckpt lora concat en/ ru/ -o both/
  ckpt lora concat en/ ru/ --weights 0.7,0.3 -o mixed/
  ckpt lora concat en/ ru/ --method knots --density 0.3 --rank 16 -o merged/
  ckpt lora concat en/ ru/ --method knots --merge dare_ties --seed 1 -o merged/
  ckpt lora concat a.safetensors b.safetensors --base unet/ --exclude 'lora_te_*' -o joined/

\b
Exit status: 2 an adapter of another kind, an invalid rank or share, a pattern that matches nothing; 3 an adapter is
missing or damaged; 4 the adapters cannot be joined; 5 the output cannot be written.
"""


def run(
    adapters: Adapters,
    weights: Weights = None,
    base: KeysOf = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Leave these modules of the adapters out. Repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Write the factors in this dtype. [default: the adapters']"),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="sum|knots", help="How the changes of the adapters are joined.")
    ] = "sum",
    merge: Annotated[
        str | None,
        typer.Option(
            "--merge",
            metavar="ties|dare_ties|task_arithmetic",
            help="With knots: merge the changes by this method, in the basis that they share. [default: ties]",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density",
            metavar="SHARE",
            help="With knots: keep this share of the values. [default: 0.2, or 0.5 with dare_ties]",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="With knots: use at most this rank. [default: the sum of the ranks]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="With --merge dare_ties: seed the choice of values. [default: 0]"),
    ] = None,
    memory: Memory = None,
    *,
    writing: AdapterWriting,
) -> None:
    """Join adapters of one base into one adapter, and write it."""
    from ....api.lora.concat import lora_concat

    writing.check()
    plan = lora_concat(
        adapters,
        weights=numbers("--weights", weights),
        base=base,
        exclude=exclude or (),
        dtype=dtype,
        method=method,
        merge=merge,
        density=density,
        rank=rank,
        seed=seed,
        memory=memory,
    )
    writing.carry_out(plan)
