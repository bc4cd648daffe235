"""What a verification holds while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.receipt import Failure
from .expected import Expected

__all__ = ["Check"]


@dataclass
class Check:
    """What is known of an output while it is checked, and what was found so far."""

    output: Checkpoint
    expected: Expected
    progress: Callable[[int, int], None]
    total: int
    left_out: Mapping[str, str]
    done: int = 0
    failed: list[Failure] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    drawn: int = 0
    near: int = 0
    products: int = 0
    nan: int = 0
    inf: int = 0

    def fail(self, key: str, why: str) -> None:
        """Note that a tensor, or with an empty key the file itself, is not as it should be."""
        self.failed.append(Failure(key, why))

    def advance(self, nbytes: int) -> None:
        """Tell the progress of ``nbytes`` more."""
        self.done += nbytes
        self.progress(self.done, self.total)
