"""The logical tensors of a state dict that are stored as codes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from ..dtypes import DTYPES
from ..info import TensorInfo

__all__ = ["NO_CODES", "CodedTensor", "Codes"]


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A logical tensor: ``parts`` maps how their keys end to the keys of what is stored of it.

    ``name`` is the key that it would have if it were stored plainly, ``codes`` the key of its codes, ``method`` says in
    words how it is encoded. ``codes`` is "" if they are elsewhere, as those of one shard can be. ``parameters`` counts
    what it stands for, None if no header tells it, but ``at_least`` so many; ``shape`` is None if no header tells it.
    ``more_codes`` are those that share its parts, in unknown encodings.
    """

    name: str
    method: str
    codes: str
    parts: Mapping[str, str]
    parameters: int | None
    shape: tuple[int, ...] | None = None
    at_least: int = 0
    more_codes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of everything that is stored of it."""
        return tuple(self.parts.values())


@dataclass(frozen=True)
class Codes:
    """The logical tensors of a state dict that are stored as codes, and which of them a key belongs to."""

    tensors: tuple[CodedTensor, ...] = ()
    by_key: Mapping[str, CodedTensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def only(self, keys: Container[str]) -> Codes:
        """Return those whose codes are among ``keys``, or their first part if their codes are elsewhere."""
        found = tuple(one for one in self.tensors if (one.codes or one.keys[0]) in keys)
        return self if len(found) == len(self.tensors) else Codes(found, self.by_key)

    def parameters(self, key: str, info: TensorInfo) -> int:
        """Return what a stored tensor counts at least: codes what they stand for, what decodes them nothing."""
        coded = self.by_key.get(key)
        if coded is None:
            return info.parameters
        return coded.at_least if key == coded.codes else 0

    def is_counted(self, key: str) -> bool:
        """Whether headers tell how many parameters a stored tensor counts."""
        coded = self.by_key.get(key)
        return coded is None or coded.parameters is not None or key != coded.codes

    def has_numbers(self, key: str, info: TensorInfo) -> bool:
        """Whether the values of a stored tensor are numbers: all but codes, and integers that decode them."""
        coded = self.by_key.get(key)
        return coded is None or (DTYPES[info.dtype].kind == "float" and key not in (coded.codes, *coded.more_codes))

    def methods(self) -> dict[str, int]:
        """Return how many tensors are encoded by each method, the most frequent first."""
        found: dict[str, int] = {}
        for one in self.tensors:
            found[one.method] = found.get(one.method, 0) + 1
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


NO_CODES = Codes()
