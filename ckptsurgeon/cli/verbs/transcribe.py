"""The command ``ckpt transcribe``: writes down the speech in sound files."""

from __future__ import annotations

from typing import Annotated

import typer

from ..printing import Printer

NAME = "transcribe"
HELP = """Transcribe sound files with a model that ckpt train has trained.

CKPT is the folder of a run (its best weights are used), or a file of weights. Text is decoded as in the run's
evaluations, or, with --beam or --lm, by a beam search over the CTC outputs. Prints a line for each sound (WAV, FLAC,
Ogg): its path, a tab and its text. A folder stands for the sounds in it. Needs the extra 'train'.
"""
EXAMPLES = """\b
Examples:
  ckpt transcribe run speech/
  ckpt transcribe best.safetensors a.flac --config ru.yaml
  ckpt transcribe run speech/*.wav --beam 100 --lm words.arpa
"""


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="The folder of a run, or a file of weights.")],
    sounds: Annotated[
        list[str], typer.Argument(metavar="SOUND...", help="The sound files to transcribe, or folders of them.")
    ],
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The configuration with which the weights were trained. [default: config.yaml next to them]",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Compute on this device. [default: a GPU if there is one]"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", help="Transcribe this many files at a time. [default: as in training]"
        ),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option("--beam", metavar="N", help="Use a beam search of this width. [default: as in training]"),
    ] = None,
    lm: Annotated[
        str | None,
        typer.Option(
            "--lm", metavar="FILE.arpa", help="Use this n-gram language model of words in the search; .gz is read too."
        ),
    ] = None,
    lm_weight: Annotated[
        float | None,
        typer.Option(
            "--lm-weight", metavar="W", help="Weight the language model with this number. [default: as in training]"
        ),
    ] = None,
    word_bonus: Annotated[
        float | None,
        typer.Option(
            "--word-bonus",
            metavar="B",
            help="With --lm: add this to the score of a text for each of its words. [default: as in training]",
        ),
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Transcribe the speech in sound files, and print the texts."""
    from ...trainer.run.transcribe import transcribe

    with printer.working("transcribing"):
        found = transcribe(
            checkpoint,
            sounds,
            config=config,
            device=device,
            batch_size=batch_size,
            beam=beam,
            lm=lm,
            lm_weight=lm_weight,
            word_bonus=word_bonus,
        )
    if not printer.answer(found):
        printer.lines(f"{one.path}\t{one.text}" for one in found.sounds)
