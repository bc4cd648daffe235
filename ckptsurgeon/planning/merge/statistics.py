"""Finds the statistics of the tensors that a merge combines; collects tensors without them, for errors and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import PlanError
from ...util.text import count, escape, listing, shape_text
from ..plan.compute import FISHER, GRAM, MAGNITUDES, OF_BASE, OF_ROWS, Merge
from ..plan.files import SourceView
from ..plan.step import Input

__all__ = ["NAMES", "ModelStatistics", "StepStatistics"]

WITHOUT = {FISHER: "average", GRAM: "average", MAGNITUDES: "unscaled"}
"""{kind of statistics: the value of the parameter ``missing`` that merges tensors without them}."""
NAMES = {FISHER: "Fisher information", GRAM: "Gram matrix", MAGNITUDES: "magnitudes of inputs"}
"""{kind of statistics: its name in messages}."""


@dataclass(frozen=True)
class ModelStatistics:
    """The statistics of a model's tensors, all of the kind ``kind``, in a file that is a source of the plan.

    ``source`` is the index of this source. ``keys`` maps keys of the model to keys of the file. ``turned`` are weights
    stored as (in, out), whose rows belong to the inputs of their layers. ``lacking`` are tensors whose statistics the
    file should have, but which were not collected; for the tensors in ``never``, this is impossible. ``few`` are
    weights whose Gram matrices were made from too few inputs to have an inverse. If the inputs are those that layers
    get in the merged model, ``merged`` has the parameters of this merge; its ``weight`` is the share of this model.
    """

    source: int
    kind: str
    keys: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    few: frozenset[str] = frozenset()
    merged: Mapping[str, float] = field(default_factory=dict)

    def kind_of(self, key: str) -> str:
        """Return the kind of the statistics of the tensor ``key``, one of the values of ``Merge.statistics``."""
        return OF_ROWS.get(self.kind, self.kind) if key in self.turned else self.kind


@dataclass
class StepStatistics:
    """Finds the statistics for each step of a merge; ``models`` maps the index of a model to its statistics."""

    views: Sequence[SourceView]
    models: Mapping[int, ModelStatistics]
    lacking: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    ridged: dict[float, list[str]] = field(default_factory=dict)
    """For each value of the parameter ``ridge`` that is not 0: the keys of the weights merged with this value."""
    undetermined: list[str] = field(default_factory=list)

    def of(
        self, key: str, inputs: Sequence[Input], parameters: Mapping[str, Any], *, fitted: bool
    ) -> tuple[str, tuple[Input, ...]]:
        """Return the kind of the statistics of ``inputs``, and the statistics of each input.

        Returns ("", ()) if the inputs are to be averaged without statistics, or if statistics are missing, which
        ``check`` reports. ``key`` is the tensor's key in the output, ``parameters`` are those of the method, and
        ``fitted`` says whether a policy changes the shapes of ``inputs``. Raises PlanError if statistics do not fit
        their tensor.
        """
        every = [self.models[one.source] for one in inputs]
        have = [one.key in own.keys for one, own in zip(inputs, every, strict=True)]
        if not any(have) and not any(one.key in own.lacking for one, own in zip(inputs, every, strict=True)):
            self.plain.append(key)
            return "", ()
        if fitted:
            self.resized.append(key)
            return "", ()
        if not all(have):
            (self.averaged if parameters.get("missing") == WITHOUT.get(self._kind) else self.lacking).append(key)
            return "", ()
        kinds = {own.kind_of(one.key) for one, own in zip(inputs, every, strict=True)}
        found = tuple(self._input(own.source, own.keys[one.key]) for one, own in zip(inputs, every, strict=True))
        kind = min(kinds)
        for one, statistics in zip(inputs, found, strict=True):
            if len(kinds) > 1 or not Merge("", {}, kind in OF_BASE, statistics=kind).fits(
                one.shape, [statistics.shape]
            ):
                raise PlanError(
                    f"the statistics {escape(statistics.key)} of {escape(self.views[statistics.source].source.name)} "
                    f"are {shape_text(statistics.shape)}, but the tensor {escape(one.key)} is "
                    f"{shape_text(one.shape)}: statistics must fit their tensor, and be of the same kind for all "
                    "models.",
                    hint="Make the statistics of all models with ckpt stats.",
                )
        _check_merged(key, every, parameters)
        if parameters.get("ridge"):
            self.ridged.setdefault(float(parameters["ridge"]), []).append(key)
        elif parameters.get("alpha") == 1 and all(one.key in own.few for one, own in zip(inputs, every, strict=True)):
            self.undetermined.append(key)
        return kind, found

    def _input(self, source: int, key: str) -> Input:
        info = self.views[source].tensors[key]
        return Input(source, key, info.dtype, info.shape)

    @property
    def _kind(self) -> str:
        return next((one.kind for one in self.models.values()), "")

    @property
    def _name(self) -> str:
        return NAMES.get(self._kind, "")

    def check(self) -> None:
        """Raise PlanError if tensors lack statistics and the parameter ``missing`` forbids it; the error lists them."""
        if self.lacking:
            names = [
                escape(self.views[one.source].source.name)
                for one in self.models.values()
                if any(key not in one.keys for key in self.lacking)
            ]
            raise PlanError(
                f"the statistics ({', '.join(names)}) lack the {self._name} of {count(len(self.lacking), 'tensor')}: "
                f"{listing(self.lacking)}.",
                hint=_OF_STACKED if self._are_stacked else _LEFT[WITHOUT.get(self._kind, "average")],
                details=self.lacking,
            )

    @property
    def _are_stacked(self) -> bool:
        """Whether none of the statistics that are missing can be collected."""
        never = frozenset[str]().union(*(one.never for one in self.models.values()))
        return never.issuperset(self.lacking)

    def notes(self) -> Iterator[str]:
        """Yield notes on tensors that are merged without statistics, and on Gram matrices of too few inputs."""
        for keys, why in (
            (self.averaged, f"{self._name} not collected, missing={WITHOUT.get(self._kind)}"),
            (self.resized, "rows or sizes differ between the models"),
            (self.plain, _OF_NO_KIND.get(self._kind, "")),
        ):
            if keys:
                done = "averaged" if self._kind not in OF_BASE else "merged by task_arithmetic,"
                yield f"{count(len(keys), 'tensor')} {done} without statistics ({why}): {listing(keys)}"
        for ridge, keys in self.ridged.items():
            yield (
                f"ridge adds {ridge:g} times the mean of the diagonal to the Gram matrices of "
                f"{count(len(keys), 'tensor')}; in directions without inputs, the result is then the mean of the "
                "models"
            )
        if self.undetermined:
            yield (
                f"{count(len(self.undetermined), 'tensor')} may not be determined by so few inputs, with ridge 0 and "
                "alpha 1: the merge fails if the Gram matrices have no inverse; --param ridge=1e-6 gives the "
                f"mean of the models in directions without inputs: {listing(self.undetermined)}"
            )


def _check_merged(key: str, models: Sequence[ModelStatistics], parameters: Mapping[str, Any]) -> None:
    """Raise PlanError if statistics of inputs in the merged model are of a merge with other parameters."""
    if not models[0].merged:
        return
    weights = parameters["weight"]
    given = [float(one) for one in (weights if len(weights) > 1 else [*weights] * len(models))]
    total = sum(given) or 1.0
    for own, weight in zip(models, given, strict=True):
        there, here = own.merged, {**parameters, "weight": weight / total}
        apart = [name for name, value in there.items() if abs(float(here[name]) - value) > 1e-9 * abs(value)]
        if apart:
            name = apart[0]
            raise PlanError(
                f"{escape(key)}: the statistics are of a merge with {name} {there[name]:g}, but this merge has "
                f"{name} {float(here[name]):g}.",
                hint="Give ckpt stats and ckpt merge the same parameters.",
            )


_OF_NO_KIND = {
    FISHER: "no parameters of the network",
    GRAM: "no weights of linear layers",
    MAGNITUDES: "no weights of linear layers",
}
"""{kind of statistics: why some tensors have none, although nothing is missing from the files}."""
_LEFT = {
    "average": "Collect it with ckpt stats, or average these tensors: --param missing=average.",
    "unscaled": "Collect them with ckpt stats, or do not scale these changes: --param missing=unscaled.",
}
"""{value of the parameter ``missing``: what to do if statistics are missing}."""
_OF_STACKED = (
    "Do not scale these changes: --param missing=unscaled. ckpt stats cannot collect magnitudes of experts that one "
    "module of the network stacks."
)
