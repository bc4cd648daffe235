"""The command ``ckpt demo-data``: makes transcribed speech to try training on."""

from __future__ import annotations

from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..options import Force, Wait
from ..printing import Printer, quoted

NAME = "demo-data"
HELP = """Make transcribed speech to try training on, with a synthesiser.

Writes a folder that contains, for each language, sounds of 16 kHz, lists of the sounds in Coqui STT's format (train,
dev, test), an alphabet and a configuration to train with. An utterance has one to four words; there are eight voices.
On one machine, the same arguments make the same bytes. The splits share words and voices: error rates show that a model
learns, but not how good it is on other speech. Needs the extra 'train'.
"""
EXAMPLES = """\b
Examples:
  ckpt demo-data demo --lang en --lang ru
  ckpt demo-data demo --lang cy --words welsh.txt --n 400
"""


@run_by_the_first
def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder to write.")],
    lang: Annotated[
        list[str] | None,
        typer.Option(
            "--lang", metavar="LANG", help="Make speech in this language, such as en. Repeatable. [default: en]"
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="Make this many training utterances in each language.")
    ] = 1600,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed the random choices with this number.")] = 0,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--words",
            metavar="[LANG=]FILE",
            help="Take the words to speak from this file; LANG is any language of espeak-ng.",
        ),
    ] = None,
    force: Force = False,
    wait: Wait = None,
    *,
    printer: Printer,
) -> None:
    """Make transcribed speech to try training on."""
    from ...trainer.speech.demo import demo_data

    langs = tuple(dict.fromkeys(lang or ["en"]))
    with printer.working("speaking", folder):
        made = demo_data(folder, langs, n=n, seed=seed, words=_words(words or (), langs), force=force, wait=wait)
    if printer.answer(made):
        return
    from rich.text import Text

    from ...render.columns import written_view

    splits = "  ".join(f"{split} {number}" for split, number in made.clips.items())
    printer.show(Text(f"  {' '.join(langs)}  {splits}  {made.seconds / 60:.1f} min"))
    printer.show(written_view(folder, next_step=f"ckpt train {quoted(made.configs[0])}"))


def _words(given: list[str] | tuple[()], langs: tuple[str, ...]) -> dict[str, str]:
    """Return the file of words of each language, from values such as ``cy=words.txt``.

    With a single language, its name can be left out: a value that does not begin with it is a path. With several
    languages, ConfigError is raised if a value does not begin with one of them.
    """
    from ...errors import ConfigError

    files = {}
    for one in given:
        lang, between, path = one.partition("=")
        if not between or lang not in langs:
            if len(langs) > 1:
                raise ConfigError(f"--words {one} does not name a language.", hint=f"Write --words {langs[0]}={one}.")
            lang, path = langs[0], one
        files[lang] = path
    return files
