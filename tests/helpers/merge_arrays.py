"""Tensors in memory, as merge methods see them: cut to slices of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from ckptsurgeon.methods.merge._registry import merge_methods
from ckptsurgeon.methods.merge._slices import Merging, Slice
from ckptsurgeon.tensors.ops.regions import Array, blocks

T = TypeVar("T")

METHODS = merge_methods()


def _finite(values: Array) -> Array:
    """Values without NaN, infinite or very large ones: the square of each is finite."""
    return (
        values.nan_to_num(0, 1, -1).clip(-1, 1) if hasattr(values, "cpu") else np.nan_to_num(values, nan=0).clip(-1, 1)
    )


class Arrays:
    """The tensors of one key. ``limit`` is the elements of a slice; ``passes`` counts how often they were gone through.

    ``grams`` are Gram matrices of the inputs of each model, which belong to the rows if ``turned``; ``magnitudes`` are
    those of the inputs of the base; ``statistics`` have a value for each element of each model. By default both follow from the values of the model.
    """

    def __init__(
        self,
        models: Sequence[Array],
        base: Array | None = None,
        *,
        limit: int = 1 << 20,
        by_rows: bool = False,
        key: str = "weight",
        seed: int = 0,
        threads: int = 1,
        xp: ModuleType = np,
        grams: Sequence[Array] = (),
        turned: bool = False,
        statistics: Sequence[Array] = (),
        magnitudes: Array | None = None,
    ) -> None:
        self.models, self.base = tuple(models), base
        self.key, self.seed = key, seed
        self.shape = tuple(int(size) for size in models[0].shape)
        self.count, self.has_base = len(models), base is not None
        self.limit = max(limit, self.shape[-1]) if by_rows and self.shape else limit
        self.threads, self.xp = threads, xp
        self.passes = 0
        self.grams, self.is_transposed, self.means = grams, turned, magnitudes
        self.statistics = tuple(statistics) or tuple(_finite(one) ** 2 for one in self.models)

    def gram(self, model: int, expert: int = 0) -> Array:
        if self.grams:
            found = self.xp.asarray(self.grams[model], dtype=self.xp.float64)
            return found[expert] if len(self.shape) == 3 else found
        values = self.xp.asarray(_finite(self.models[model]), dtype=self.xp.float64)
        values = values[expert] if len(self.shape) == 3 else values
        return values.T @ values + self.xp.eye(self.shape[-1], dtype=self.xp.float64)

    def magnitudes(self) -> Array:
        if self.means is not None:
            return self.xp.asarray(self.means, dtype=self.xp.float64)
        values = self.xp.asarray(_finite(self.base), dtype=self.xp.float64)
        return abs(values).mean(0) if self.shape[0] else values.sum(0)

    def slices(self) -> Iterator[Slice]:
        offset = 0
        for index, box in enumerate(blocks(self.shape, self.limit)):
            made = self._slice(tuple(slice(*one) for one in box), offset, index)
            offset += math.prod(made.models[0].shape)
            yield made

    def _slice(self, where: tuple[slice, ...], offset: int, index: int) -> Slice:
        base = None if self.base is None else self.base[where]
        statistics = tuple(one[where] for one in self.statistics)
        return Slice(tuple(model[where] for model in self.models), base, offset, index, self.xp, statistics)

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        self.passes += 1
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(look, self.slices()))

    def whole(self) -> Slice:
        self.passes += 1
        return self._slice((), 0, 0)

    def uniform(self, at: Slice, model: int) -> Array:
        drawn = np.random.default_rng([self.seed, crc32(self.key.encode()), model]).random(math.prod(self.shape))
        part = drawn[at.offset : at.offset + math.prod(at.models[0].shape)].reshape(tuple(at.models[0].shape))
        return self.xp.asarray(part.astype("f4"))

    def merged(self, merge: Merging, order: Callable[[list[Slice]], list[Slice]] = list) -> Array:
        made = {at.index: self.xp.reshape(merge(at), (-1,)) for at in order(list(self.slices()))}
        parts = [made[index] for index in sorted(made)]
        return self.xp.reshape(self.xp.concatenate(parts), self.shape) if parts else self.models[0]


def merge(
    method: str, models: Sequence[Array], base: Array | None = None, *, limit: int = 1 << 20, **parameters: Any
) -> Array:
    """Merge tensors in memory. Parameters that begin with an underscore are those of ``Arrays``."""
    options = {name[1:]: parameters.pop(name) for name in list(parameters) if name.startswith("_")}
    found = METHODS[method]
    by_rows = found.wants_rows(tuple(models[0].shape), parameters)
    tensors = Arrays(models, base, limit=limit, by_rows=by_rows, **options)
    return tensors.merged(found.prepare(tensors, parameters))
