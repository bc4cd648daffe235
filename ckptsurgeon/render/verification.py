"""Shows receipts and verifications."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..planning.plan.receipt import FactorFit, Receipt, RoundedTensor, Verification
from ..util.text import count, escape, human_bytes, listing, percent, shape_text
from .columns import Columns, Hanging, next_view

__all__ = ["counts_line", "receipt_view", "verification_view", "windows_view"]

# Receipts.

WORST = 12
"""The largest number of weights whose errors of extracted LoRA factors are shown without -v: the largest errors."""

WORST_ROUNDED = 5
"""The largest number of quantised tensors whose errors are shown without -v: the tensors with the largest errors."""

RATE_BYTES, RATE_S = 10_000_000, 1.0
"""The speed of writing is shown only if at least this many bytes were written, in at least this many seconds."""


def receipt_view(receipt: Receipt, *, next_steps: Sequence[str] = (), every: bool = False) -> RenderableType:
    """Return the errors of extracted LoRA factors and of quantised tensors, the written output, and next commands.

    Only the largest errors are shown, unless ``every`` is set.
    """
    line = Text(escape(receipt.output), style="bold")
    size = human_bytes(receipt.nbytes_written + receipt.nbytes_kept)
    if receipt.nbytes_kept:
        size = f"{size} ({human_bytes(receipt.nbytes_written)} of it in this run)"
    line.append(f"  {size}  {receipt.elapsed_s:.1f} s{_rate(receipt)}", "not bold")
    beside = [Hanging(Text("  with  "), listing(receipt.beside, 12, where=""))] if receipt.beside else []
    errors = [*_fits(receipt.fits, every), *_rounded(receipt.rounded, every)]
    return Group(*errors, Hanging(Text("  wrote "), line), *beside, *next_view(next_steps))


def windows_view(
    receipts: Sequence[Receipt], sources: Sequence[str], *, next_step: str, every: bool = False
) -> RenderableType:
    """Return a table of the windows of ``sources`` whose means were written, and a line for each written file.

    ``next_step`` is the command that the user may run next; ``every`` shows all errors of quantised tensors.
    """
    kinds = list(dict.fromkeys(kind for one in receipts for kind, number in one.counts.items() if number))
    window = len(sources) - len(receipts) + 1
    rows: list[list[str | Text]] = [[Text(name, "dim") for name in ("", "mean of", *kinds)]]
    for place, one in enumerate(receipts):
        ends = (os.path.basename(os.path.normpath(sources[at])) for at in (place, place + window - 1))
        counts = [str(one.counts.get(kind) or "-") for kind in kinds]
        rows.append([escape(os.path.basename(one.output)), " to ".join(map(escape, ends)), *counts])
    written = [
        receipt_view(one, next_steps=[next_step] if one is receipts[-1] else (), every=every) for one in receipts
    ]
    return Group(Columns(rows, right=tuple(range(2, 2 + len(kinds)))), *written)


def _fits(fits: Sequence[FactorFit], every: bool) -> list[RenderableType]:
    """Return a table of the errors of extracted LoRA factors, the largest first.

    The error of a module is the distance between the product of its factors and the change that it represents (the
    difference of weights, or a merged change), as a share of that change. If all errors are 0, one line says so, unless
    ``every`` is set.
    """
    if not fits:
        return []
    if not every and not any(fit.error for fit in fits):
        return [Text("  the ranks are large enough: nothing is lost by the rank")]
    worst = sorted(fits, key=lambda fit: -fit.error)
    shown = worst if every else worst[:WORST]
    rows: list[list[str | Text]] = [["", Text("rank", "dim"), Text("lost by the rank", "dim")]]
    rows += [[f"{escape(fit.key)} {shape_text(fit.shape)}", str(fit.rank), percent(fit.error, 1)] for fit in shown]
    more = len(worst) - len(shown)
    rest = [Text(f"  and {more} more with losses that are no larger (-v shows all)", "dim")] if more else []
    return [Columns(rows, right=(1,)), *rest]


def _rounded(rounded: Sequence[RoundedTensor], every: bool) -> list[RenderableType]:
    """Return a table of the errors of quantised tensors, the largest first."""
    if not rounded:
        return []
    worst = sorted(rounded, key=lambda one: -one.error)
    shown = worst if every else worst[:WORST_ROUNDED]
    rows: list[list[str | Text]] = [["", Text("error", "dim"), Text("largest", "dim")]]
    for one in shown:
        rows.append([f"{escape(one.key)} {shape_text(one.shape)}", percent(one.error, 2), f"{one.largest:.2g}"])
    more = len(worst) - len(shown)
    rest = [Text(f"  and {more} more with errors that are no larger (-v shows all)", "dim")] if more else []
    return [Columns(rows, right=(1, 2)), *rest]


def _rate(receipt: Receipt) -> str:
    if receipt.nbytes_written < RATE_BYTES or receipt.elapsed_s < RATE_S:
        return ""
    return f"  {human_bytes(int(receipt.nbytes_written / receipt.elapsed_s))}/s"


def counts_line(receipt: Receipt) -> Text:
    """Return a line with how many tensors of a receipt were copied, cast, merged and so on."""
    classes = ", ".join(f"{number} {kind}" for kind, number in receipt.counts.items() if number)
    return Text(f"  {classes}")


SHOWN_FAILURES = 20

Row = list[str | Text]


def verification_view(found: Verification, *, full: bool = False) -> RenderableType:
    """Return the checks, the failures (with ``full`` all of them), and the verdict."""
    failures = _all_failures(found) if full else _failures(found)
    summary = [*_found(found, not found.recipe), *_not_compared(found, not found.recipe)]
    rows = list(_notes(found, full))
    own = [row for row in rows if len(row) == 2]
    notes = (Columns(own), Columns(row for row in rows if len(row) > 2))
    return Group(Columns(summary), Columns(failures), *notes, _verdict(found))


def _found(found: Verification, without_recipe: bool) -> Iterator[Row]:
    if not found.checked:
        return
    if found.patch:
        told = (
            f"{found.compared} of {count(found.checked, 'tensor')} in files with the SHA-256 in {escape(found.patch)}"
        )
        yield [_mark(found.ok), "bytes as the patch makes them", told]
        return
    if without_recipe:
        names_only = "only names, dtypes and shapes are compared with the plan, values are not"
        told = "compared with the plan only, without checksums" if found.unchecked < found.checked else names_only
        yield ["", "no recipe in it", told]
    elif all(failure.key for failure in found.failed):
        yield [_mark(True), "header, metadata and recipe", "as they were written"]
    if found.signed:
        yield [_mark(True), "signature", "made with the given key; it covers every file"]
    # Every tensor with right values was compared, or was drawn, or could not be compared. Failures may be of
    # keys that were never checked, so the number of right tensors cannot be derived from them.
    right = found.compared + found.near + found.products + found.drawn + len(found.not_compared or {})
    right, checked = right - found.unchecked, found.checked - found.unchecked
    if checked:
        those = " that were compared" if found.unchecked else ""
        yield [_mark(right == checked), "values as expected", f"{right} of {count(checked, 'tensor')}{those}"]
    if found.compared:
        yield ["", "equal, bit for bit", f"{found.compared}, compared with the sources or computed again from them"]
    if found.near:
        how = "within 1e-5 of the largest value: computed by torch, or on another processor"
        yield ["", "close to numpy's result", f"{found.near}, {how}"]
    if found.products:
        yield ["", "equal in their product", f"{found.products}, up to rounding: factors are not unique"]
    if found.drawn:
        how = "not compared: a plan has no checksums" if without_recipe else "compared with the checksum in the recipe"
        yield ["", "drawn", f"{found.drawn}, {how}"]
    special = [f"{number} {name}" for number, name in ((found.nan, "NaN"), (found.inf, "Inf")) if number]
    yield ["", "NaN and Inf", Text(", ".join(special), "yellow") if special else "none"]


def _failures(found: Verification) -> Iterator[Row]:
    """Yield a table row for each reason of failures, with the keys that failed."""
    groups: dict[str, list[str]] = {}
    for failure in found.failed:
        groups.setdefault(failure.why, []).append(failure.key or found.output)
    for why, keys in list(groups.items())[:SHOWN_FAILURES]:
        if len(keys) == 1:
            yield [_mark(False), escape(keys[0]), escape(why, 600)]
        else:
            yield [
                _mark(False),
                count(len(keys), "file" if found.patch else "tensor"),
                f"{escape(why, 600)}: {listing(keys, where=' (-v lists all)')}",
            ]
    if len(groups) > SHOWN_FAILURES:
        yield ["", f"and {len(groups) - SHOWN_FAILURES} more", "-v lists all"]


def _all_failures(found: Verification) -> Iterator[Row]:
    for failure in found.failed:
        yield [_mark(False), escape(failure.key or found.output), escape(failure.why, 600)]


def _not_compared(found: Verification, without_recipe: bool) -> Iterator[Row]:
    groups: dict[str, int] = {}
    for why in (found.not_compared or {}).values():
        groups[why] = groups.get(why, 0) + 1
    for why, number in groups.items():
        reason = escape(why).rstrip(".") + ("" if without_recipe else "; checksums hold")
        yield ["", Text("NOT COMPARED", "yellow"), f"{count(number, 'tensor')}: {reason}"]


def _notes(found: Verification, full: bool) -> Iterator[Row]:
    """Yield a table row for each text of notes, with the names of its tensors; with ``full``, nothing is left out.

    A note on the output as a whole has no name in its row, because the line below the table shows the output's path.
    """
    groups: dict[str, list[str]] = {}
    for note in found.notes:
        groups.setdefault(note.why, []).append(note.name)
    shown = len(groups) if full else SHOWN_FAILURES
    for why, names in list(groups.items())[:shown]:
        said = escape(why, 600)
        if len(names) > 1:
            said += f": {listing(names, len(names) if full else 5, where=' (-v lists all)')}"
        if names == [found.output]:
            yield [Text("NOTE", "yellow"), said]
        else:
            yield [Text("NOTE", "yellow"), escape(names[0]) if len(names) == 1 else f"{len(names)} names", said]
    if len(groups) > shown:
        yield ["", f"and {len(groups) - shown} more", "-v lists all"]


def _verdict(found: Verification) -> RenderableType:
    label = Text("  verified ", "green") if found.ok else Text("  FAILED ", "bold red")
    if found.ok and not found.verified:
        label = Text("  not verified ", "yellow")
    text = Text(escape(found.output), "bold")
    if found.checked:
        text.append(f"  {human_bytes(found.nbytes)}  {found.elapsed_s:.1f} s", "default not bold")
    if found.ok and found.unchecked:
        text.append(f"  the values of {count(found.unchecked, 'tensor')} were not compared", "yellow")
    if found.ok and found.notes:
        text.append(f"  unchanged, but see {count(len({note.why for note in found.notes}), 'note')} above", "yellow")
    return Hanging(label, text)


def _mark(good: bool) -> Text:
    return Text("PASS", "green") if good else Text("FAIL", "bold red")
