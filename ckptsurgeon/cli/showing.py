"""Shows what a verb with a plan makes besides its output: an explanation, a page or a proof."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import typer

from ..errors import ConfigError
from ..util.text import escape
from .printing import Printer, check_output, print_to, quoted

if TYPE_CHECKING:
    from ..analysis.page.contents import Page
    from ..analysis.prove.proof import Proof
    from ..planning.plan.plan import Plan

__all__ = [
    "check_page",
    "check_writes_no_model",
    "show_explained",
    "show_page",
    "show_proof",
    "write_page",
]


def check_writes_no_model(option: str = "--explain", **writing: object) -> None:
    """Raise ConfigError if --explain or --page, which write no model, is given with an option for writing.

    ``writing`` has the options for writing by name, with their values.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in writing.items() if value]
    if given:
        what = "nothing" if option == "--explain" else "only the page"
        raise ConfigError(
            f"{option} and {given[0]} contradict each other: {option} writes {what}.", hint="Leave one out."
        )


def check_page(path: str) -> None:
    """Raise ConfigError if the path of a page is ``-``, or ends neither in ``.html`` nor in ``.htm``."""
    check_output(path)
    if not path.lower().endswith((".html", ".htm")):
        raise ConfigError(
            f"{escape(path)} is not a valid name for a page.", hint="Use a name that ends in .html or .htm."
        )


def show_explained(printer: Printer, plan: Plan, keys: Sequence[str]) -> None:
    """Show where the tensors ``keys`` of a plan come from, and why, even with -q."""
    from ..analysis.merge_explanation import ExplainedMerge
    from ..api.explain import explain

    found = explain(plan, keys)
    if printer.answer(found):
        return
    printer.notes(plan.notes)
    if isinstance(found, ExplainedMerge):
        from ..render.merge_explanation import explained_merge_view

        print_to(sys.stdout, explained_merge_view(found))
    else:
        from ..render.explanation import explained_view

        print_to(sys.stdout, explained_view(found, every=printer.verbose))


def write_page(printer: Printer, plan: Plan, path: str, *, force: bool, wait: float | None) -> None:
    """Write the page about a merge, and show where it is."""
    from ..api.view import view

    with printer.working("comparing", path) as progress:
        page = view(plan, output=path, force=force, wait=wait, progress=progress)
    show_page(printer, page)


def show_page(printer: Printer, page: Page) -> None:
    """Show where a page was written, how to open it, and its notes."""
    if printer.answer(page):
        return
    from ..render.columns import page_view

    printer.show(page_view(page, next_step=f"open {quoted(page.output or '')} in a browser"))
    printer.notes(page.notes)


def show_proof(printer: Printer, proof: Proof, shown: Collection[str]) -> None:
    """Show the result of --prove, with its notes that are not in ``shown``; exit with 1 if the networks differ."""
    if not printer.json:
        from ..render.prove import proof_view

        printer.show("", proof_view(proof, every=printer.verbose))
        printer.notes(note for note in proof.notes if note not in shown)
    if proof.verdict == "DIFFERENT":
        raise typer.Exit(1)
