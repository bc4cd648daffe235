"""Shows a result in a notebook as in the terminal.

The classes of results inherit from ``InNotebooks``. The top-level package sets the module that shows them.
"""

from __future__ import annotations

from .brief import Brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Views(Protocol):
        """The interface of the module that shows results, ``render.notebook``."""

        def html_of(self, result: object, /) -> str:
            """Return a result as HTML for a notebook."""

        def text_of(self, result: object, /) -> str:
            """Return a result as text."""


__all__ = ["InNotebooks", "shown_by"]


class InNotebooks(Brief):
    """A result that a notebook shows as the terminal does, and whose ``repr`` is short."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the terminal's view as HTML, without script and with every name escaped."""
        return _views().html_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the result as in the terminal; IPython keeps this text next to the HTML."""
        printer.text(_views().text_of(self))


def shown_by(find: Callable[[], Views]) -> None:
    """Set the function that returns the module for showing results; it is called when one is shown."""
    global _views
    _views = find


def _views() -> Views:
    raise NotImplementedError("import ckptsurgeon first: it sets the module that shows results")
