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

--barrier also runs the networks on the line between A and B, and shows by how much their loss exceeds the line between
the losses of A and B. If this barrier is high, the mean of the two networks is of no use.
"""
EXAMPLES = """\b
Examples:
  ckpt prove llama/ llama-bf16/
  ckpt prove old.pth new.safetensors --model model.yaml --inputs batch.safetensors
  ckpt prove whisper/ converted/ --inputs clip.wav
  ckpt prove math/ code/ --barrier --align --inputs texts.txt
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
            help="Run on these inputs: named arguments (.safetensors), lines of text (.txt), audio (.wav, .flac, "
            ".ogg), an image (.png, .jpg, .webp, .bmp), or a folder of images or sounds.",
        ),
    ] = None,
    barrier: Annotated[
        bool, typer.Option("--barrier", help="Measure the loss barrier between A and B in place of comparing them.")
    ] = False,
    points: Annotated[
        int | None,
        typer.Option("--points", metavar="N", help="With --barrier: measure the loss at N points, A and B included."),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="With --barrier: first reorder the channels, heads and experts of B so that they match those of A.",
        ),
    ] = False,
    align_groups: Annotated[
        str | None,
        typer.Option(
            "--align-groups", metavar="FILE.yaml",
            help="With --align: read from this YAML file which axes may be reordered, if there is no config.json.",
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
    given = {"--points": points is not None, "--align": align, "--align-groups": align_groups is not None}
    if barrier:
        return _measure(
            printer, first, second, points=11 if points is None else points, align=align, align_groups=align_groups,
            model=model, inputs=inputs, seed=seed, task=task, root=root, memory=memory,
        )  # fmt: skip
    _check_plain(given)
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
    return None


def _check_plain(given: dict[str, bool]) -> None:
    """Raise ConfigError if an option is given that is only for --barrier."""
    from ...errors import ConfigError

    for name, is_given in given.items():
        if is_given:
            raise ConfigError(f"{name} is only for --barrier.", hint=f"Add --barrier, or leave {name} out.")


def _measure(printer: Printer, first: str, second: str, **more: object) -> None:
    """Measure the loss barrier between two networks, and show it."""
    from ...api.prove.barrier import loss_barrier

    with printer.working("proving") as progress:
        found = loss_barrier(first, second, progress=progress, **more)  # type: ignore[arg-type]
    if not printer.answer(found):
        from ...render.prove import barrier_view

        printer.show(barrier_view(found))
        printer.notes(found.notes)
