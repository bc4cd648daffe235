"""The command ``ckpt patch apply``: makes the new checkpoint from the old checkpoint and a patch."""

from __future__ import annotations

from typing import Annotated

import typer

from ...first_process import by_the_first
from ...options import Force, OutputHere, Wait
from ...printing import Printer, given_output

NAME = "patch apply"
HELP = """Make the new checkpoint from the old checkpoint and one or more patches, bit for bit.

Before a byte is written, the CRC-32 of every tensor of OLD that the patch needs is compared with the one in the patch;
it is an error if they differ.
The files that are written must have the SHA-256 that the patch stores for them.
"""
EXAMPLES = """\b
Examples:
  ckpt patch apply base/ tuned.ckptpatch -o tuned/
  ckpt patch apply step0.safetensors 1000.ckptpatch 2000.ckptpatch -o step2000.safetensors

\b
Exit status: 3 an input is missing, or a patch is damaged; 4 OLD is not what the patch was made from; 5 the output
cannot be written.
"""


def run(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The checkpoint that the first patch was made from.")],
    patches: Annotated[
        list[str], typer.Argument(metavar="PATCH…", help="The patches, in the order in which to apply them.")
    ],
    output: OutputHere = None,
    force: Force = False,
    wait: Wait = None,
    *,
    printer: Printer,
) -> None:
    """Apply the patches in order, and write the resulting checkpoint."""
    from ....api.patch import apply_patch
    from ....render.patch import applied_view
    from ....storage.read.uri import shown
    from ...printing import quoted

    output = given_output(output)
    with printer.working("writing", output) as progress:
        made = by_the_first(lambda: apply_patch(old, patches, output, force=force, wait=wait, progress=progress))
    if not printer.answer(made):
        check = f"ckpt verify {quoted(shown(output))} --patch {quoted(shown(patches[-1]))}"
        printer.notes(made.notes)
        printer.show(applied_view(made, output, next_steps=[check]))
