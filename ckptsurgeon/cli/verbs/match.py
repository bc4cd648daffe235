"""The command ``ckpt match``: proposes rules and operations that turn one model's tensors into another's."""

from __future__ import annotations

from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..options import Force, Json, Root, Task, Verbose, Wait
from ..printing import Printer

NAME = "match"
HELP = """Propose the rules and operations that turn one model's tensors into another's.

Reads headers only: names, shapes, and the numbers of layers. Each proposal has a reason: the same name, the same name
except for a prefix that most of the model has, a name that is clearly more similar than all others or is known for the
same part of a transformer block, or a shape that no other tensor has. Operations split or join fused projections, put
stacks together or take them apart, transpose and reshape. Ambiguous and unmatched keys are listed, and so are
operations that names and shapes alone do not decide.

With --values, both checkpoints must hold the same network, perhaps in different dtypes. Then values decide: they also
show the order of fused parts, groups and permutations of heads, and the order of rows for rotary embeddings. All
proposed pairs are compared: they are equal bit for bit or, in different dtypes, within the rounding of a cast (of
float16 and bfloat16: of both dtypes).

Nothing is applied: review the answer, and use the file that -o writes with ckpt apply, or with --operations and
--map-file of ckpt rename and ckpt transplant.
"""
EXAMPLES = """\b
Examples:
  ckpt match fairseq.pt wav2vec2.safetensors
  ckpt match bert.safetensors mine.yaml -q > names.map; ckpt transplant bert.safetensors mine.yaml --map-file names.map
  ckpt match neox.safetensors mine.safetensors --values -o moved.yaml; ckpt apply moved.yaml -o out.safetensors
"""


@run_by_the_first
def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint whose names should change.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A configuration or checkpoint that has the wanted names.")
    ],
    values: Annotated[
        bool, typer.Option("--values", help="Compare values, too; both checkpoints must hold the same network.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="RECIPE.yaml", help="Write rules and operations here, as a recipe."),
    ] = None,
    force: Force = False,
    wait: Wait = None,
    task: Task = None,
    root: Root = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the rules, one on each line.")] = False,
    verbose: Verbose = False,
) -> None:
    """Propose rules and operations that turn a source's tensors into a destination's."""
    from ...api.match import match

    printer = Printer(json, quiet, verbose)
    with printer.working("comparing", output or "") as progress:
        found = match(
            source, destination, values=values, output=output, force=force, wait=wait, task=task, root=root,
            progress=progress,
        )  # fmt: skip
    if printer.answer(found):
        return
    if quiet:
        printer.lines(found.rules)
        if found.operations and output is None:
            from ...errors import PlanError

            raise PlanError(
                "with -q, only rules are printed, but match also proposes operations, and the rules need them.",
                hint="Use -o FILE to write the rules and the operations, or leave -q out.",
            )
        return
    from ...render.match import operation_lines, proposal_view, rule_lines

    printer.lines(operation_lines(found.operations))
    printer.lines(rule_lines(found.rules))
    printer.show(proposal_view(found, every=verbose))
    printer.notes(found.notes)
