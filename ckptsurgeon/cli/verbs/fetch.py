"""``ckpt fetch``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ...util.text import escape
from ..sink import Sink

NAME = "fetch"
HELP = """Bring a file or a whole repository to this machine, and print where it lies.

URI is hf://org/repo, with @revision and /file if wanted, an http(s) address, what fsspec reads (s3://, gs:// …), or a
path. A branch is pinned to its commit, and what came is held against the hub's digest: SHA-256, or git's SHA-1 of small
files. A commit that is in the cache is given without a request, offline too. What is fetched is data: nothing is run.

Exit status: 0 done; 2 a URI or option that cannot be meant; 3 it cannot be had, or is not what it should be; 5 it
cannot be put where it should lie.
"""
EXAMPLES = """\b
Examples:
  ckpt fetch hf://org/repo@v1.0/model.safetensors
  ckpt fetch https://example.org/best.pth --sha256 "$SHA256" --dir models
"""


def run(
    uri: Annotated[str, typer.Argument(metavar="URI", help="What to fetch.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="R", help="A branch, tag or commit of a hf:// repository.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="H", help="What the one file must be, wherever it is from.")
    ] = None,
    dir: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Put files of its own there, not only into the cache.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files in DIR that were not fetched, or were changed since.")
    ] = False,
    *,
    sink: Sink,
) -> None:
    """Fetch."""
    from ...api.fetch import fetch

    with sink.working("fetching") as progress:
        found = fetch(uri, revision=revision, sha256=sha256, dir=dir, force=force, progress=progress)
    if sink.answer(found):
        return
    sink.notes(found.notes)
    if sink.verbose:
        sink.notes(f"{one.name}: {one.size} bytes, SHA-256 {one.sha256}" for one in found.files)
    # Exact for programs that read it; a terminal is shown what does nothing to it.
    sink.lines([escape(found.path, len(found.path)) if sys.stdout.isatty() else found.path])
