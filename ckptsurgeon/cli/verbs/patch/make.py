"""The command ``ckpt patch make``: stores what changed between two checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from ...first_process import by_the_first
from ...options import Force, OutputHere, Wait
from ...printing import Printer, given_output

NAME = "patch make"
HELP = """Store what changed between two checkpoints in a small file, bit for bit.

The patch contains only data that OLD does not have: for tensors that differ, the compressed XOR with the old tensor;
new tensors and files as they are. `ckpt patch apply OLD PATCH -o NEW` makes the same files again. With --signs, a
change of a weight takes one bit; with --low-rank, the change of a matrix is the product of two small factors. The files
that are made then differ from NEW; the errors are shown. Quantised weights are always stored exactly.
"""
EXAMPLES = """\b
Examples:
  ckpt patch make base/ tuned/ -o tuned.ckptpatch
  ckpt patch make base/ tuned/ -o tuned.ckptpatch --signs 'model.layers.**' --exact '**.{embed,lm_head}*'
  ckpt patch make base/ tuned/ -o tuned.ckptpatch --low-rank 'model.layers.**' --rank 32
  ckpt patch make step1000.safetensors step2000.safetensors -o 2000.ckptpatch

\b
Exit status: 2 a bad option, or the package zstandard is missing; 3 an input is missing or damaged; 4 --signs or
--low-rank selects only quantised weights; 5 the patch cannot be written.
"""


def run(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="The checkpoint that the receiver has: a file or a folder.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The checkpoint that the patch makes from OLD.")],
    output: OutputHere = None,
    level: Annotated[
        int, typer.Option("--level", metavar="N", help="Compress with this level of Zstandard, from 1 (fast) to 19.")
    ] = 1,
    signs: Annotated[
        list[str] | None,
        typer.Option(
            "--signs",
            metavar="GLOB",
            help="For these matrices, store only the signs of the changes and their mean size (BitDelta): the patch "
            "then makes files that differ from NEW. Repeatable.",
        ),
    ] = None,
    low_rank: Annotated[
        list[str] | None,
        typer.Option(
            "--low-rank",
            metavar="GLOB",
            help="For these matrices, store only low-rank factors of the changes: the patch then makes files that "
            "differ from NEW. Repeatable.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="Use this rank for the factors of --low-rank. [default: 16]"),
    ] = None,
    exact: Annotated[
        list[str] | None,
        typer.Option(
            "--exact",
            metavar="GLOB",
            help="Store these tensors exactly, even if --signs or --low-rank matches them. Repeatable.",
        ),
    ] = None,
    force: Force = False,
    wait: Wait = None,
    *,
    printer: Printer,
) -> None:
    """Write the patch, and show how much of the new checkpoint it contains."""
    from ....api.patch import make_patch
    from ....render.patch import patch_view
    from ....storage.read.uri import shown
    from ...printing import quoted

    output = given_output(output)
    with printer.working("comparing", output) as progress:
        made = by_the_first(
            lambda: make_patch(
                old,
                new,
                output,
                level=level,
                signs=signs or (),
                low_rank=low_rank or (),
                rank=rank,
                exact=exact or (),
                force=force,
                wait=wait,
                progress=progress,
            )
        )
    if not printer.answer(made):
        printer.notes(made.notes)
        printer.show(
            patch_view(made, "wrote", next_steps=[f"ckpt patch apply {quoted(shown(old))} {quoted(output)} -o OUT"])
        )
