"""A page that was written, as a person wants to hear of it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.page.page import Page
from ..util.text import count, escape, human_bytes
from .notes import Hanging, next_view

__all__ = ["page_view"]


def page_view(page: Page, *, next_step: str) -> RenderableType:
    """Return where a page is, how big, of how many tensors, and what to do next."""
    line = Text(escape(page.output or ""), style="bold")
    line.append(f"  {human_bytes(page.nbytes)}  {count(page.tensors, 'tensor')}", "not bold")
    return Group(Hanging(Text("  wrote "), line), *next_view([next_step]))
