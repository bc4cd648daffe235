"""What a merge was asked to do where models differ, and the tensors that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ...errors import ConfigError
from ...methods.merge._method import Method
from ...tensors.dtypes import DTYPES, dtype_named
from ...util.text import escape
from .mismatch import MergeMismatch
from .values import Values
from .vocabulary import MergeVocabulary

__all__ = ["MergeOptions", "Piece", "Place"]

ON_MISSING = ("error", "base", "skip", "any")
INT_BUFFERS = ("last", "first", "max")
COMPUTE = ("float32", "float64")


@dataclass(frozen=True)
class MergeOptions:
    """What is done where models differ, and in which dtypes it is computed and written. Raises ConfigError."""

    on_missing: str = "error"
    mismatch: MergeMismatch = field(default_factory=MergeMismatch)
    int_buffers: str = "last"
    dtype: str = ""
    compute: str = ""
    vocabulary: MergeVocabulary | None = None
    device: str = ""

    @staticmethod
    def of(
        *,
        on_missing: str,
        on_mismatch: str | Mapping[str, str] | Sequence[str] | None,
        int_buffers: str,
        dtype: str | None,
        compute: str | None,
        vocabulary: MergeVocabulary | None = None,
        device: str = "",
    ) -> MergeOptions:
        """Check options as people write them."""
        chosen = (
            ("--on-missing", on_missing, ON_MISSING),
            ("--int-buffers", int_buffers, INT_BUFFERS), ("--compute", compute or COMPUTE[0], COMPUTE),
        )  # fmt: skip
        for flag, value, known in chosen:
            if value not in known:
                raise ConfigError(f"{flag} {escape(str(value))} is unknown.", hint=f"Use {', '.join(known)}.")
        mismatch = MergeMismatch.of(on_mismatch or "error")
        options = MergeOptions(on_missing, mismatch, int_buffers, "", compute or "", vocabulary, device)
        return options.or_dtype(dtype or "")

    def or_dtype(self, dtype: str) -> MergeOptions:
        """Return options with a dtype, where none was given before."""
        wanted = dtype_named(dtype) if dtype else ""
        if wanted and DTYPES[wanted].kind != "float":
            raise ConfigError(f"dtype {wanted} is no real floating point.", hint="Use float32, bfloat16, float16, …")
        return replace(self, dtype=self.dtype or wanted)


class Place(NamedTuple):
    """Where a model has a tensor: its source, by number, and the key there."""

    source: int
    key: str


class Piece(NamedTuple):
    """A tensor of the output: where each model has it, where the base does, how it is merged.

    ``models`` has a place for each model, whether it is there or not. ``depth`` is from 0, the first layer, to 1.
    """

    key: str
    models: tuple[Place, ...]
    base: Place | None
    method: Method
    values: Values
    depth: float
