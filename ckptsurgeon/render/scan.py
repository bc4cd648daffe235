"""Shows a scan: first the findings that do more than rebuild tensors, then counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.scan.findings import Finding, Scan, Use, Verdict
from ..util.text import count, escape, human_bytes
from .columns import Columns, Hanging

__all__ = ["scan_view"]

SHOWN = 20
_NAMES = 8

Row = list[str | Text]


def scan_view(found: Scan, *, every: bool = False) -> RenderableType:
    """Return the findings that are not ``ok``, or have notes; then the scan's notes, counts and verdict.

    A finding is not ``ok`` if it does more than rebuild tensors, or was not scanned completely. With ``every``, return
    all findings.
    """
    limit = 1 << 30 if every else SHOWN
    listed = list(found.found) if every else [*found.beyond, *(one for one in found.found if one.ok and one.notes)]
    views: list[RenderableType] = [_finding(one, limit if every else _NAMES) for one in listed[:limit]]
    if len(listed) > limit:
        views.append(Text(f"  and {len(listed) - limit} more (-v or --json lists all)"))
    return Group(*views, *_notes(found.notes), _summary(found), _verdict(found))


def _finding(one: Finding, names: int) -> RenderableType:
    where = f"{one.path} > {one.within}" if one.within else one.path
    rows: list[Row] = [[_mark(one), escape(where), _words(one)]]
    beyond = [use for use in one.uses if use.verdict is Verdict.CODE]
    lines = [line for use in beyond[:names] for line in _use(use)]
    if len(beyond) > names:
        lines.append(f"and {len(beyond) - names} more names")
    lines += [escape(note) for note in one.notes]
    return Group(Columns(rows), *(Hanging(Text("    "), line) for line in lines))


def _mark(one: Finding) -> Text:
    if one.fault is not None:
        return Text(one.fault.kind.upper(), "bold red" if one.fault.kind == "corrupt" else "yellow")
    return {
        Verdict.PLAIN: Text("plain data", "green"),
        Verdict.TENSORS: Text("tensor rebuilding", "green"),
        Verdict.CODE: Text("UNKNOWN CODE", "bold red"),
    }[one.verdict]


def _words(one: Finding) -> str:
    if one.fault is None:
        return one.format
    code = ", with unknown code" if one.verdict is Verdict.CODE else ""
    return f"{one.format}{code}: {escape(one.fault.why, 400)}"


def _use(use: Use) -> Iterator[str]:
    """Yield lines on what a pickle does with an imported name: how often it calls the name, then the first calls."""
    done = [f"called {_times(use.called)}"] if use.called else ["imported, not called"]
    done += [f"given a state {_times(use.changed)}"] if use.changed else []
    done += [use.why] if use.why else []
    yield f"{escape(use.module, 100)}.{escape(use.name, 100)}  {', '.join(done)}"
    yield from (f"  {escape(call, 300)}" for call in use.calls)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _notes(notes: Sequence[str]) -> Iterator[RenderableType]:
    return (Hanging(Text("  "), escape(note)) for note in notes)


def _summary(found: Scan) -> Text:
    """Return the number of files with each verdict or fault; a file with several findings has the worst one."""
    said = Counter(found.judged_files.values())
    words = ", ".join(f"{said[one]} {one}" for one in (*map(str, Verdict), "corrupt", "unreadable") if said[one])
    return Text(f"  {count(found.files, 'file')}, {human_bytes(found.nbytes)}: {words or 'nothing to read'}")


def _verdict(found: Scan) -> RenderableType:
    whole = "" if found.whole else ", not scanned completely"
    label = Text("  ok ", "green") if found.ok else Text("  NOT OK ", "bold red")
    return Hanging(label, Text(f"{escape(found.path)}  {found.judged}{whole}"))
