"""Sums of x x^T over the inputs of a layer, or of each expert, in temporary files: together they may exceed memory."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...util.text import escape, human_bytes
from .experts import by_expert, expert_arguments, is_near, stacked_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...tensors.ops.regions import Array

__all__ = ["ExpertGrams", "MatrixSum", "Slot", "block_rows", "slots_of"]

BLOCK = 64 << 20
"""So many rows of a Gram matrix are computed at once that they have about this many bytes in double precision."""
EXPERT = re.compile(r"\bexperts?\.([0-9]{1,6})\.")
"""The part of a key that has the index of an expert."""


@dataclass
class MatrixSum:
    """The sum of x x^T over inputs x: a matrix in a temporary file, or None before the first inputs."""

    key: str
    sum: Array | None = None
    count: int = 0

    def add(self, flat: Tensor, name: str) -> None:
        """Add inputs (positions, inputs) of the module ``name``; raises ConfigError if they are not finite."""
        if self.sum is None:
            self.sum = in_file((flat.shape[1],) * 2, self.key)
        add_products([self.sum], flat, name)
        self.count += len(flat)


def add_products(into: Sequence[Array], flat: Tensor, name: str) -> None:
    """Add x x^T over the rows x of ``flat`` to matrices; raises ConfigError if a sum is not finite.

    ``flat`` are inputs of the module ``name``, which is for the message.
    """
    import numpy as np

    flat = flat.double()
    for rows in block_rows(flat.shape[1]):
        part = (flat[:, rows].T @ flat).numpy()
        if not np.isfinite(part).all():
            raise ConfigError(
                f"the inputs of the module {escape(name)} have values that are NaN, infinite, or too large to square.",
                hint="Look for damaged weights with ckpt check, or give other inputs.",
            )
        for one in into:
            one[rows] += part


def block_rows(size: int) -> Sequence[slice]:
    """Return slices that divide the ``size`` rows of a square matrix into parts of about ``BLOCK`` bytes.

    The elements of the matrix are in double precision.
    """
    step = max(1, BLOCK // (8 * size))
    return [slice(first, first + step) for first in range(0, size, step)]


def in_file(shape: tuple[int, ...], key: str) -> Array:
    """Return an array of zeros in a temporary file; raises ConfigError if it cannot be made."""
    import numpy as np

    nbytes = 8 * prod(shape)
    try:
        with tempfile.TemporaryFile(prefix="ckptsurgeon-") as file:
            if hasattr(os, "posix_fallocate"):  # reserves space: else a write to a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
            return np.memmap(file, "<f8", "r+", shape=shape)
    except OSError as error:
        raise ConfigError(
            f"the temporary file for the Gram matrix of {escape(key)} cannot be made: {human_bytes(nbytes)}, "
            f"{error.strerror}.",
            hint=f"Temporary files are in {escape(tempfile.gettempdir())}: set TMPDIR to a folder with more room, or "
            "choose layers with --include.",
        ) from error


@dataclass
class Slot:
    """The Gram matrices of the inputs of all experts of a module, for one of its parameters.

    ``keys`` are those of the checkpoint: one for each expert, or one for a tensor that stacks all of them. ``is_last``
    says that the parameter is of the last layer of the experts. ``sum`` is (experts, inputs, inputs), in a file.
    """

    parameter: str
    keys: tuple[str, ...]
    is_last: bool
    is_turned: bool
    sum: Array | None = None

    def values(self, counts: Sequence[int]) -> Iterator[tuple[str, Array]]:
        """Yield each key and its matrices: means over the positions that use an expert; zeros if none does."""
        if self.sum is None:
            return
        for expert, count in enumerate(counts):
            for rows in block_rows(self.sum.shape[1]):
                self.sum[expert, rows] /= max(1, count)
        if len(self.keys) == 1:
            yield self.keys[0], self.sum
        else:
            yield from zip(self.keys, self.sum, strict=True)


def slots_of(
    name: str, module: Any, keys: Mapping[str, str], made: Mapping[str, Sequence[str]]
) -> tuple[list[Slot], list[str]]:
    """Return a ``Slot`` for each parameter of a module that stacks experts, and the keys of weights without a slot.

    The inputs of the latter cannot be collected. ``name`` is the name of the module, and ``keys`` and ``made`` are the
    fields of ``LayerWeights`` with these names.
    """
    number, found, lacking = stacked_sizes(module)[0], list[Slot](), list[str]()
    is_turned = bool(getattr(module, "is_transposed", False))
    for own, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{own}"
        if parameter.dim() != 3:
            continue
        is_last = own == "down_proj"
        if full in keys:
            found.append(Slot(full, (keys[full],), is_last, is_turned))
            continue
        columns = _by_index(made.get(full, ()), number)
        if columns and not is_turned:
            found += [Slot(full, one, is_last, False) for one in columns]
        else:
            lacking += made.get(full, ())
    return found, lacking


def _by_index(keys: Sequence[str], number: int) -> list[tuple[str, ...]]:
    """Return a tuple for each parameter of an expert, with the keys of this parameter for all experts, in order.

    Returns [] if the keys do not have the indices 0 to ``number`` - 1, or if experts have different numbers of keys.
    """
    experts: dict[int, list[str]] = {}
    for key in keys:
        found = EXPERT.search(key)
        if found is None:
            return []
        experts.setdefault(int(found[1]), []).append(key)
    if sorted(experts) != list(range(number)) or len({len(one) for one in experts.values()}) != 1:
        return []
    return list(zip(*(experts[index] for index in range(number)), strict=True))


@dataclass
class ExpertGrams:
    """Collects the Gram matrices of the inputs of all experts of a module, each over the positions routed to it.

    The router's weights have no influence. ``counts`` are the numbers of these positions. ``is_known`` is False if it
    is not known how the module computes: the sum of the experts' outputs must be the module's own output.
    """

    name: str
    module: nn.Module
    slots: list[Slot]
    counts: list[int] = field(default_factory=list)
    is_known: bool = True

    def take(
        self, positions: Callable[[Tensor], Tensor], module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Add the inputs of a call of the module; ``positions`` returns rows without padding."""
        import torch

        found = expert_arguments([*args, *kwargs.values()])
        if found is None or not self.is_known:
            self.is_known = False
            return
        hidden, chosen, weights = found
        kept = torch.zeros(len(hidden), dtype=torch.bool)
        kept[positions(torch.arange(len(hidden))[:, None]).reshape(-1)] = True
        self.counts = self.counts or [0] * stacked_sizes(module)[0]
        total = torch.zeros_like(hidden, dtype=torch.float64)
        try:
            for expert, rows, factors, inner, outer in by_expert(module, hidden, chosen, weights):
                total.index_add_(0, rows, outer.double() * factors[:, None])
                real = kept[rows]
                self._add(expert, hidden[rows][real], inner[real])
        except (AttributeError, RuntimeError, TypeError, IndexError):  # the module's weights have other names or shapes
            self.is_known = False
            return
        self.is_known = is_near(total, output[0] if isinstance(output, tuple) else output)

    def _add(self, expert: int, first: Tensor, last: Tensor) -> None:
        for is_last, flat in ((False, first), (True, last)):
            into = [one for one in self.slots if one.is_last == is_last]
            for one in into:
                if one.sum is None:
                    one.sum = in_file((len(self.counts), flat.shape[1], flat.shape[1]), one.keys[0])
            if into:
                sums = [one.sum[expert] for one in into if one.sum is not None]
                add_products(sums, flat, self.name)
        self.counts[expert] += len(first)
