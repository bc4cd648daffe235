"""The command ``ckpt init``: writes a destination configuration."""

from __future__ import annotations

from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..options import Force, Root, Task, Wait
from ..printing import Printer, check_output, quoted

NAME = "init"
HELP = """Write a destination configuration from a checkpoint, or from a toolkit's own configuration.

From a checkpoint, the configuration declares every tensor with its shape, its dtype and an initialiser guessed from its
name and shape. Tensors for which no initialiser can be guessed, such as buffers, keep the values of the checkpoint
(init: like). Review and edit the configuration: change a shape, remove a module, then transplant into it. From ESPnet's
config.yaml, it writes a configuration that refers to that file, and copies the frozen parameters (freeze_param) into
the section train.
"""
EXAMPLES = """\b
Examples:
  ckpt init best.pth -o dst.yaml
  ckpt init best.pth --root model_ema > dst.yaml
  ckpt init exp/asr_train/config.yaml -o dst.yaml
  ckpt init conf/train_asr_conformer.yaml --task asr -o dst.yaml
"""


@run_by_the_first
def run(
    source: Annotated[
        str, typer.Argument(metavar="CKPT|CONFIG", help="The checkpoint or toolkit configuration to describe.")
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the configuration here instead of to stdout."),
    ] = None,
    root: Root = None,
    task: Task = None,
    force: Force = False,
    wait: Wait = None,
    *,
    printer: Printer,
) -> None:
    """Write a destination configuration, from a checkpoint or from a toolkit's own configuration."""
    from ...api.inspect import initial_config

    if output is not None:
        check_output(output)
    with printer.working("writing", output or ""):
        text, notes = initial_config(source, root=root, task=task, output=output, force=force, wait=wait)
    config = text if output is None else None
    if printer.answer({"kind": "ckpt.init", "version": 1, "output": output, "config": config, "notes": notes}):
        return
    printer.notes(notes)
    if output is None:
        printer.lines([text.rstrip("\n")])
        return
    from ...render.columns import written_view

    printer.show(written_view(output, next_step=f"review it, then ckpt transplant SRC {quoted(output)}"))
