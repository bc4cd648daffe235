"""The command ``ckpt check``: looks for faults before a model is shipped or trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..failing import failed
from ..options import Root
from ..printing import Printer
from ..stopping import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...analysis.check.report import CheckReport
    from ...errors import CheckpointError

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
    from ...errors import ConfigError, FormatError, SourceError

    if sarif and printer.json:
        raise ConfigError("--sarif and --json contradict each other.", hint="Leave one of them out.")
    reports: list[CheckReport] = []
    unread: dict[str, CheckpointError] = {}
    for path in paths:
        try:
            for note in settle(path):
                say(f"note: {note}")
            with printer.working("checking") as progress:
                reports.append(check(path, base=base, root=root, skip=skip or (), progress=progress))
        except (FormatError, SourceError) as error:  # the other checkpoints are still checked
            unread[path] = error
    if reports or sarif:
        _print(reports, unread, printer, sarif=sarif, strict=strict)
    errors = [*unread.values()]
    for one in errors[:-1]:
        failed(one, (), as_json=printer.json)
    if errors:
        raise errors[-1]
    if not all(report.ok and not (strict and report.verdict.value == "WARN") for report in reports):
        raise typer.Exit(1)


def _print(
    reports: list[CheckReport],
    unread: Mapping[str, CheckpointError],
    printer: Printer,
    *,
    sarif: bool,
    strict: bool,
) -> None:
    """Print reports, in the form that the options choose; JSON and SARIF also have the errors ``unread``, by path."""
    from ...storage.read.uri import shown

    if sarif:
        import json

        from ...analysis.check.sarif import sarif_of

        said = {shown(path): " ".join(filter(None, (one.message, one.hint))) for path, one in unread.items()}
        printer.lines(json.dumps(sarif_of(reports, said), indent=2, allow_nan=False).splitlines())
        return
    ok = not unread and all(report.ok for report in reports)
    data = {"kind": "ckpt.check", "version": 1, "ok": ok, "reports": [report.to_json() for report in reports]}
    errors = [{"path": shown(path), "message": one.message, "hint": one.hint} for path, one in unread.items()]
    if printer.json and printer.answer({**data, "errors": errors}):
        return
    if printer.quiet:  # rich takes long to import
        return
    from ...render.check import check_view

    for report in reports:
        printer.show(check_view(report, every=printer.verbose, is_lenient=not strict))
