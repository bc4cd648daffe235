"""Merges samples of tensors by each method, and sums up how much of the models' changes each method keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ...analysis.compare.measure_changes import StoredTensor
from ...analysis.merge_survey import MethodSurvey, SampledModel
from ...errors import CheckpointError
from ...methods.merge._method import Method
from ...methods.merge._registry import merge_methods
from ...methods.merge.arithmetic.deltas import KeptElements, StagedMerging
from ...planning.plan.compute import Merge
from ...tensors.ops.regions import Array
from ...util.text import count
from .explain import BASES, NEEDED
from .sampled_tensors import SampledTensors, read_sample, sample_boxes

__all__ = ["MergedTensor", "sampled_methods"]

LARGEST = 1 << 16
"""At most this many values of a tensor are sampled."""
TOTAL = 1 << 23
"""About this many values are sampled in total, over all models and the base. Some twenty methods merge all of them."""
TENSORS = 2048
"""At most this many tensors are sampled."""
SHARED = ("weight", "density")
"""The parameters that mean the same in all methods: every method gets the plan's values of them."""
USUAL = {"density": 0.5}
"""Values for parameters whose defaults have no effect; other values in the plan have priority."""

COMMON = (
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs",
    "breadcrumbs_ties", "sce", "slerp", "nuslerp", "multislerp", "karcher", "model_stock",
)  # fmt: skip
"""The methods that are used most, which come first after those of the plan."""


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of a merge.

    ``base`` is the tensor in the base, ``models`` maps the index of each model to its tensor, and ``merge`` is the
    method with its parameters.
    """

    key: str
    base: StoredTensor
    models: Mapping[int, StoredTensor]
    merge: Merge


def sampled_methods(
    tensors: Sequence[MergedTensor], models: int, plugins: Sequence[Method], seed: int
) -> tuple[tuple[MethodSurvey, ...], int]:
    """Return (a MethodSurvey for each merge method, number of sampled values).

    Each survey has the share of the models' changes that the method keeps. The methods of the plan come first.
    ``models`` is the number of models, and ``plugins`` are the user's own methods. Memory and time are bounded by the
    constants of this module, whatever the size of the models.
    """
    planned = dict.fromkeys(one.merge.method for one in tensors)
    known = merge_methods(plugins)
    order = dict.fromkeys((*planned, *COMMON, *known))
    totals = {name: _Total(known[name], models) for name in order if name in known}
    tried = {name: one for name, one in totals.items() if name in planned or _is_for_several(one.method)}
    sampled, size = 0, max(1, min(LARGEST, TOTAL // (max(1, min(len(tensors), TENSORS)) * (models + 1))))
    for one in _spread(tensors):
        boxes, shape = sample_boxes(one.base.info.shape, size)
        sampled += prod(shape)
        read = _finite([read_sample(each, boxes) for each in (*one.models.values(), one.base)])
        for name, total in tried.items():
            if name == one.merge.method or name not in planned:
                total.add(one, read, shape, seed)
    return tuple(total.survey(is_planned=name in planned) for name, total in tried.items()), sampled


def _is_for_several(method: Method) -> bool:
    return method.needs_others and not method.statistics


def _spread(tensors: Sequence[MergedTensor]) -> Iterator[MergedTensor]:
    """Yield at most ``TENSORS`` tensors at equal distances."""
    number = min(TENSORS, len(tensors))
    return (tensors[at * len(tensors) // number] for at in range(number))


def _finite(read: list[Array]) -> list[Array]:
    """Return the values of all models and the base; an element that is not finite in one of them is 0 in all."""
    usable = np.logical_and.reduce([np.isfinite(one) for one in read])
    return read if usable.all() else [np.where(usable, one, np.float32(0)) for one in read]


@dataclass
class _Total:
    """Sums over the samples of all tensors that one method has merged; ``survey`` computes the figures from them.

    If the method cannot merge the tensors, ``why`` is the reason.
    """

    method: Method
    number: int
    counts: dict[int, KeptElements] = field(default_factory=dict)
    squares: dict[int, float] = field(default_factory=dict)
    products: dict[int, float] = field(default_factory=dict)
    merged: float = 0.0
    settings: Counter[tuple[tuple[str, Any], ...]] = field(default_factory=Counter)
    why: str = ""

    def add(self, one: MergedTensor, read: Sequence[Array], shape: tuple[int, ...], seed: int) -> None:
        """Merge the sample of a tensor, and add it to the sums; if the method cannot merge it, record the reason."""
        if self.why:
            return
        *models, base = read
        given = self._given(one.merge)
        self.why = _why_not(self.method, shape, len(models), given)
        if self.why:
            return
        own = base if self.method.base in BASES else None
        tensors = SampledTensors(one.key, shape, tuple(models), own, seed)
        try:
            with np.errstate(all="ignore"):
                merging = self.method.prepare(tensors, dict(given))
                result = merging(tensors.whole())
                kept = merging.kept(tensors.whole()) if isinstance(merging, StagedMerging) else []
        except CheckpointError as error:
            self.why = error.message.rstrip(".")
            return
        self.settings[tuple(sorted(self._notable(given).items()))] += 1
        self._sum(list(one.models), [model - base for model in models], result.reshape(-1) - base, kept)

    def _given(self, merge: Merge) -> dict[str, Any]:
        """Return the parameters with which the method merges a tensor: those of ``merge`` if it uses the same method.

        For any other method, parameters in ``SHARED`` get the values in ``merge``. A parameter without a default gets
        the value in ``NEEDED``, and one whose default has no effect the value in ``USUAL``.
        """
        if merge.method == self.method.name:
            return dict(merge.parameters)
        given: dict[str, Any] = {}
        for one in self.method.parameters:
            shared = merge.parameters.get(one.name) if one.name in SHARED else None
            if shared is not None and (one.each or not isinstance(shared, tuple)):
                given[one.name] = shared
            elif one.default is None and one.name in NEEDED:
                given[one.name] = NEEDED[one.name]
            if one.name in USUAL and _all_ones(given.get(one.name)):
                given[one.name] = USUAL[one.name]
        return given

    def _notable(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that differ from the defaults; a value that all models share is a single number."""
        defaults = {one.name: one.default for one in self.method.parameters}
        plain = {name: _plain(value) for name, value in given.items()}
        return {name: value for name, value in plain.items() if value != defaults.get(name)}

    def _sum(
        self, indices: Sequence[int], changes: Sequence[Array], result: Array, kept: Sequence[KeptElements]
    ) -> None:
        wide = result.astype("<f8")
        self.merged += float(wide @ wide)
        for place, (index, change) in enumerate(zip(indices, changes, strict=True)):
            own = change.astype("<f8")
            self.squares[index] = self.squares.get(index, 0.0) + float(own @ own)
            self.products[index] = self.products.get(index, 0.0) + float(own @ wide)
            if kept:
                before = self.counts.get(index)
                self.counts[index] = kept[place] if before is None else before + kept[place]

    def survey(self, *, is_planned: bool) -> MethodSurvey:
        """Return the result over all samples: figures for each model, or the reason why the method merges none."""
        name = self.method.name
        if self.why or not self.squares:
            return MethodSurvey(name, is_planned=is_planned, why=self.why or "it merges none of the sampled tensors")
        mean = sum(map(math.sqrt, self.squares.values())) / len(self.squares)
        ratio = math.sqrt(self.merged) / mean if mean else None
        parameters = dict(self.settings.most_common(1)[0][0]) if len(self.settings) == 1 else _varying(self.settings)
        models = tuple(self._model(index) for index in range(self.number))
        return MethodSurvey(name, parameters, is_planned, models, _finite_number(ratio))

    def _model(self, index: int) -> SampledModel:
        square, kept = self.squares.get(index, 0.0), self.counts.get(index)
        share = self.products[index] / square if square else None
        if kept is None or not kept.changed:
            return SampledModel(None, None, _finite_number(share))
        elected = None if kept.elected is None else kept.elected / kept.changed
        return SampledModel(kept.trimmed / kept.changed, elected, _finite_number(share))


def _finite_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _all_ones(value: Any) -> bool:
    """Return whether the value of a density is None, or 1 for each model."""
    return value is None or all(one == 1 for one in (value if isinstance(value, (tuple, list)) else (value,)))


def _plain(value: Any) -> Any:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values[0] if len(set(values)) == 1 else values


def _varying(settings: Counter[tuple[tuple[str, Any], ...]]) -> dict[str, Any]:
    """Return {parameter: its value} of a method; the value is "varies" if it was not the same for all tensors."""
    every = [dict(one) for one in settings]
    names = dict.fromkeys(name for one in every for name in one)
    return {
        name: every[0].get(name) if len({repr(one.get(name)) for one in every}) == 1 else "varies" for name in names
    }


def _why_not(method: Method, shape: tuple[int, ...], number: int, given: Mapping[str, Any]) -> str:
    """Return the reason why a method is not tried on samples; "" if it can be tried."""
    least, most = method.models
    if number < least or (most is not None and number > most):
        return f"merges {count(most, 'model')}" if most is not None else f"needs at least {count(least, 'model')}"
    if method.bytes_held(shape, number + 1, 4, given):
        return "factorises whole matrices, so samples do not show it (--explain KEY does)"
    if method.statistics:
        return f"needs statistics ({method.statistics})"
    lacking = [one.name for one in method.parameters if one.default is None and one.name not in given]
    return f"needs {', '.join(lacking)}" if lacking else ""
