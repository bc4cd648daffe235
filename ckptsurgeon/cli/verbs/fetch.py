"""The command ``ckpt fetch``: downloads a file or a repository."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ...util.text import escape
from ..first_process import run_by_the_first
from ..printing import Printer

NAME = "fetch"
HELP = """Download a file or a whole repository, check it, and print where it is.

URI is hf://org/repo (with @revision and /file if wanted), an http(s) address, an address that fsspec reads (s3://,
gs:// …), or a path. A branch is pinned to its commit, and each file is compared with the hub's digest: SHA-256, or
git's SHA-1 for small files. A commit that is in the cache is used without a request, also offline. Fetched code is not
run.

Exit status: 0 done; 2 the URI or an option is wrong; 3 the file is not available, or has the wrong digest; 5 it cannot
be written.
"""
EXAMPLES = """\b
Examples:
  ckpt fetch hf://org/repo@v1.0/model.safetensors
  ckpt fetch https://example.org/best.pth --sha256 "$SHA256" --dir models
"""


@run_by_the_first
def run(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The file or repository to fetch.")],
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="R", help="Fetch this branch, tag or commit of an hf:// repository."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="H", help="Fail unless the file has this SHA-256.")
    ] = None,
    dir: Annotated[
        str | None,
        typer.Option("--dir", metavar="DIR", help="Also put copies into this folder, not only into the cache."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files in DIR that were not fetched, or have changed since.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Download a file or repository, and print where it is."""
    from ...api.fetch import fetch

    with printer.working("fetching") as progress:
        found = fetch(uri, revision=revision, sha256=sha256, dir=dir, force=force, progress=progress)
    if printer.answer(found):
        return
    printer.notes(found.notes)
    if printer.verbose:
        printer.notes(f"{one.name}: {one.size} bytes, SHA-256 {one.sha256}" for one in found.files)
    # The exact path for programs that read it; escaped on a terminal, which control characters could change.
    printer.lines([escape(found.path, len(found.path)) if sys.stdout.isatty() else found.path])
