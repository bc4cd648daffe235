"""What a notebook shows of a result: what the terminal shows.

The classes of results inherit from ``InNotebooks``. The façade, which is above all rooms, says who shows them.
"""

from __future__ import annotations

from .brief import Brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Views(Protocol):
        """What shows results: the module ``render.notebook``."""

        def html_of(self, result: object, /) -> str:
            """Return what a notebook shows of a result."""

        def text_of(self, result: object, /) -> str:
            """Return the same as text."""


__all__ = ["InNotebooks", "shown_by"]


class InNotebooks(Brief):
    """A result that a notebook shows as the terminal does, and whose ``repr`` is short."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the terminal's view as HTML, without script and with every name escaped."""
        return _views().html_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the terminal's view, which IPython keeps beside the HTML."""
        printer.text(_views().text_of(self))


def shown_by(find: Callable[[], Views]) -> None:
    """Let results be shown by what ``find`` returns, which is asked when one is shown."""
    global _views
    _views = find


def _views() -> Views:
    raise NotImplementedError("the package ckptsurgeon says who shows results")
