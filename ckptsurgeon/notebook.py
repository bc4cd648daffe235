"""What a notebook shows of a result: what the terminal shows.

The classes of results inherit from ``Shown``; the views are found when one is shown, so that no room imports them.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Shown"]


class Shown:
    """A result that a notebook shows as the terminal does; its view is in the room ``render``."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the terminal's view as HTML, without script and with every name escaped."""
        html: str = importlib.import_module("ckptsurgeon.render.notebook").html_of(self)
        return html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the terminal's view: IPython keeps it beside the HTML, and a ``repr`` has no bound."""
        printer.text(importlib.import_module("ckptsurgeon.render.notebook").text_of(self))
