"""The command ``ckpt prove``: runs two networks and says whether they compute the same."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Memory, Root, Task
from ..printing import Printer

NAME = "prove"
HELP = """Run two networks on the same inputs, and say whether they compute the same.

Outputs are compared after each block, so that the first block that differs is shown, with its tensors that differ. This
finds a tensor of the right shape in the wrong position, which names and shapes do not show. SAME: bit for bit.
EQUIVALENT: rounding of the weights can explain the difference (a third run measures this). DIFFERENT: exit status 1.
Weights are read block by block, within --memory, and computed in float32; codes of quantised models are decoded, and a
GGUF gets the names and layout of transformers.
"""
EXAMPLES = """\b
Examples:
  ckpt prove llama/ llama-bf16/
  ckpt prove old.pth new.safetensors --model model.yaml --inputs batch.safetensors
  ckpt prove whisper/ converted/ --inputs clip.wav
"""


def run(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or a folder with its model.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The checkpoint that should compute the same.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="CONFIG", help="The configuration for a checkpoint without a config.json."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs", metavar="FILE",
            help="Run on these inputs: named arguments (.safetensors), text lines (.txt) or audio (.wav, .flac, .ogg).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draw the inputs with this seed.")] = 0,
    task: Task = None,
    root: Root = None,
    memory: Memory = None,
    *,
    printer: Printer,
) -> None:  # fmt: skip
    """Compare what two networks compute; exit with 1 if they are different."""
    from ...api.prove.prove import prove

    with printer.working("proving") as progress:
        found = prove(
            first, second, model=model, inputs=inputs, seed=seed, task=task, root=root, memory=memory, progress=progress
        )
    if not printer.answer(found):
        from ...render.prove import proof_view

        printer.show(proof_view(found, every=printer.verbose))
        printer.notes(found.notes)
    if found.verdict == "DIFFERENT":
        raise typer.Exit(1)
