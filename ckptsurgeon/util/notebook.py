"""Shows results in a notebook as the terminal shows them.

The classes of results inherit from ``InNotebooks``. ``ckptsurgeon/__init__.py`` sets the module that shows the results.
"""

from __future__ import annotations

from .short_repr import Brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Views(Protocol):
        """The interface of the module that shows results, ``render.html``."""

        def html_of(self, result: object, /) -> str:
            """Return a result as HTML for a notebook."""

        def text_of(self, result: object, /) -> str:
            """Return a result as text."""


__all__ = ["InNotebooks", "shown_by"]


class InNotebooks(Brief):
    """Base class of results: a notebook shows what the terminal would show, and the ``repr`` is short."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the output of the terminal as HTML without scripts; all names are escaped."""
        return _views().html_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the same text as in a terminal; IPython stores this text in addition to the HTML."""
        printer.text(_views().text_of(self))


def shown_by(find: Callable[[], Views]) -> None:
    """Set the function that returns the module for showing results: ``find`` is called whenever a result is shown."""
    global _views
    _views = find


def _views() -> Views:
    raise NotImplementedError("import ckptsurgeon first: it sets the module that shows results")
