"""A page that was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from ...util.brief import Brief

__all__ = ["Page"]


@dataclass(frozen=True, repr=False)
class Page(Brief):
    """A page as HTML, and where it was written, if it was; ``tensors`` counts its rows."""

    html: str = field(repr=False)
    tensors: int
    output: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the page in bytes."""
        return len(self.html.encode("utf-8", "surrogatepass"))

    def to_json(self) -> dict[str, Any]:
        """Return what is to be said of it as plain data, without the page."""
        return {
            "kind": "ckpt.view",
            "version": 1,
            "output": self.output,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, for notebooks."""
        return f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" width="100%" height="640"></iframe>'
