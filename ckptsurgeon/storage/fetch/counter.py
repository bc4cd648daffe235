"""What the hub's client is given in place of its own progress bars: a count of bytes for ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["counter"]


def counter(progress: Progress | None) -> type[Any]:
    """Return a class that stands for ``tqdm`` where the client makes its bars: it draws nothing.

    Of a repository the client has two bars for the same bytes, those that came and those that were put together, and
    others that count files. The furthest of those of bytes is what is told.
    """
    bars: list[Any] = []

    class Counter:
        """One bar of the client."""

        def __init__(self, iterable: Any = None, *_: Any, total: float | None = None, initial: int = 0, **given: Any):
            self.iterable, self.total, self.n = iterable, total, initial
            self.format_dict: dict[str, Any] = {}
            if given.get("unit") == "B":
                bars.append(self)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.iterable or ())

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name == "update_transfer":
                raise AttributeError(name)
            return lambda *_, **__: None  # close, refresh, set_description: what only draws

        def update(self, n: float | None = 1) -> None:
            """Count what has come."""
            self.n += int(n or 0)
            if progress is not None and self in bars:
                progress(max(bar.n for bar in bars), max(int(bar.total or 0) for bar in bars))

    return Counter
