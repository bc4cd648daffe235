"""Names of files inside a folder, as files themselves give them."""

from __future__ import annotations

from ...errors import FormatError
from ...util.text import escape

__all__ = ["check_name"]


def check_name(uri: str, name: str) -> None:
    """Raise FormatError where a name does not lie inside the folder ``uri``."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise FormatError(f"{escape(uri)} names a file outside itself: {escape(name)}.", rule="outside")
