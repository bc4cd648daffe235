"""``ckpt transcribe``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..sink import Sink

NAME = "transcribe"
HELP = """Read texts off sounds, with a model that ckpt train has trained.

CKPT is the folder of a run, whose best weights are used, or a file of weights. Texts are decoded as in the run's
evaluations. Prints a line for each sound (WAV, FLAC, Ogg): its path, a tab and its text. Needs the extra 'train'.
"""
EXAMPLES = """\b
Examples:
  ckpt transcribe run speech/*.wav
  ckpt transcribe best.safetensors a.flac --config ru.yaml
"""


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="The folder of a run, or a file of weights.")],
    sounds: Annotated[list[str], typer.Argument(metavar="SOUND...", help="The sounds to read.")],
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The configuration that trained the weights. [default: config.yaml beside them]",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Compute on this device. [default: a GPU if there is one]"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Read so many sounds together. [default: as in training]"),
    ] = None,
    *,
    sink: Sink,
) -> None:
    """Read texts off sounds."""
    from ...trainer.run.transcribe import transcribe

    with sink.working("transcribing"):
        found = transcribe(checkpoint, sounds, config=config, device=device, batch_size=batch_size)
    if not sink.answer(found):
        sink.lines(f"{one.path}\t{one.text}" for one in found.sounds)
