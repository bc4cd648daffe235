"""The command ``ckpt check``: looks for faults before a model is shipped or trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..failing import failed
from ..options import Root
from ..printing import Printer
from ..stopping import say

if TYPE_CHECKING:
    from ...analysis.check.report import CheckReport

NAME = "check"
HELP = """Look for faults of a checkpoint before it is shipped or trained.

Reads every value once. Checks files (sizes, offsets, checksums, index), values (NaN, zeros, copies, outliers, rows
never trained, scales), the files next to the weights (config.json, tokeniser, model card) and adapters. Each check is
PASS, WARN, FAIL or NOT RUN. WARN: a maintainer should look at this. FAIL: the model does not load, or computes wrong
results.

Exit status: 0 nothing failed; 1 a check failed or, with --strict, warned; 2 usage; 3 not a checkpoint.
"""
EXAMPLES = """\b
Examples:
  ckpt check model/
  ckpt check model/ --strict --skip model-card
  ckpt check model/ --sarif > check.sarif
  ckpt check adapter/ --base base/
  ckpt check model.safetensors --skip duplicates -v
"""


def run(
    paths: Annotated[list[str], typer.Argument(metavar="FILE|DIR…", help="The checkpoints.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Compare an adapter with this base model.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="CHECK", help="Leave out the check with this id. Repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a check warns, as if it failed.")] = False,
    sarif: Annotated[
        bool, typer.Option("--sarif", help="Print SARIF 2.1.0, which code hosts show next to a change.")
    ] = False,
    root: Root = None,
    *,
    printer: Printer,
) -> None:
    """Look for faults of checkpoints, and print what was found."""
    from ...api.check import check
    from ...api.in_place.settle import settle
    from ...errors import FormatError, SourceError

    reports, unread = [], []
    for path in paths:
        try:
            for note in settle(path):
                say(f"note: {note}")
            with printer.working("checking") as progress:
                reports.append(check(path, base=base, root=root, skip=skip or (), progress=progress))
        except (FormatError, SourceError) as error:  # the other checkpoints are still checked
            unread.append(error)
    if reports:
        _print(reports, printer, sarif=sarif, strict=strict)
    for one in unread[:-1]:
        failed(one, (), as_json=printer.json)
    if unread:
        raise unread[-1]
    if not all(report.ok and not (strict and report.verdict.value == "WARN") for report in reports):
        raise typer.Exit(1)


def _print(reports: list[CheckReport], printer: Printer, *, sarif: bool, strict: bool) -> None:
    if sarif:
        import json

        from ...analysis.check.sarif import sarif_of

        printer.lines(json.dumps(sarif_of(reports), indent=2, allow_nan=False).splitlines())
        return
    data = {"kind": "ckpt.check", "version": 1, "ok": all(report.ok for report in reports)}
    if printer.json and printer.answer({**data, "reports": [report.to_json() for report in reports]}):
        return
    if printer.quiet:  # rich takes long to import
        return
    from ...render.check import check_view

    for report in reports:
        printer.show(check_view(report, every=printer.verbose, is_lenient=not strict))
