"""Lists the tensors that a configuration of mergekit makes: the models of each, and how they are merged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...methods.merge._method import Method, Parameter
from ...util.text import brief_repr, count
from ..keys.pattern import KeyPattern
from ..merge.layers import LayerList, layer_list, layer_lists
from ..merge.pieces import MergePiece, ParameterSetting, ParameterValues, Settings, pieces_of
from ..merge.slices import LayerSlice, LayerSource, sliced_pieces
from ..plan.files import SourceView
from .configuration import WHOLE, Configuration, ModelPart, ModuleConfig, SliceConfig, SourceConfig, parts_of
from .fields import ModelReference, at, fault, table, text

__all__ = ["LayerStack", "MergeLayout", "NumberedModels", "pieces_of_configuration", "settings", "without_effect"]

# Parameters in mergekit's form: values, gradients, and lists of values that each apply to some tensors.

IDLE: Mapping[str, tuple[str, ...]] = {"": ("int8_mask",), "task_arithmetic": ("density", "rescale")}
"""{method ("" for all methods): parameters that mergekit accepts although they have no effect}."""

UNUSED_LAYERS = "the field layers changes nothing without slices or a gradient, and is not needed"
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _idle(method: Method, name: str) -> bool:
    """Return whether the parameter ``name`` has no effect: the method does not have it, and mergekit ignores it."""
    return name in (*IDLE[""], *IDLE.get(method.name, ())) and name not in {one.name for one in method.parameters}


def settings(method: Method, where: str, data: Mapping[str, Any]) -> Settings:
    """Return the settings of a method's parameters that a configuration has under ``where``.

    Raises ConfigError for values that mergekit could not read either.

    The value of a parameter is a scalar, a list of scalars (from the first layer to the last), or a map with ``value``
    and a condition. A condition is ``filter``, a string that the tensor's name contains, or ``keys``, a key pattern
    (which mergekit does not have). The value may also be a list of such maps: the first whose condition is met applies.
    """
    known = {one.name: one for one in method.parameters}
    return {
        name: _settings(at(where, name), value, known.get(name))
        for name, value in data.items()
        if not _idle(method, name)
    }


def _settings(where: str, data: Any, parameter: Parameter | None) -> list[ParameterSetting]:
    if isinstance(data, dict):
        return [_conditional(where, data, parameter)]
    if not isinstance(data, list) or not any(isinstance(one, dict) for one in data):
        return [_plain(where, data, parameter)]
    found = [_conditional(at(where, i), one, parameter) for i, one in enumerate(data)]
    hiding = next((i for i, one in enumerate(found[:-1]) if one.is_for_all), None)
    if hiding is not None:
        raise fault(at(where, hiding), "applies to all tensors, so later entries have no effect", "Put it last.")
    return found


def _conditional(where: str, data: Any, parameter: Parameter | None) -> ParameterSetting:
    given = table(where, data, ("value", "filter", "keys"), ("value",))
    if "filter" in given and "keys" in given:
        raise fault(where, "has both filter and keys", "Give one: keys is a pattern, filter a part of the names.")
    contains = text(at(where, "filter"), given["filter"]) if "filter" in given else ""
    pattern = KeyPattern.given(text(at(where, "keys"), given["keys"]), "keys: ") if "keys" in given else None
    plain = _plain(at(where, "value"), given["value"], parameter)
    return ParameterSetting(plain.value, pattern, layers=plain.layers, contains="" if contains == "*" else contains)


def _plain(where: str, data: Any, parameter: Parameter | None) -> ParameterSetting:
    if isinstance(data, list):
        if not data:
            raise fault(where, "is an empty list", "A gradient has one value or more, the first for the first layer.")
        return ParameterSetting(layers=tuple(_scalar(at(where, i), one, parameter) for i, one in enumerate(data)))
    return ParameterSetting(_scalar(where, data, parameter))


def _scalar(where: str, data: Any, parameter: Parameter | None) -> float | bool | str:
    """Return a value in its parameter's type; numbers and booleans may be given as strings, booleans as 0 and 1.

    Raises ConfigError for a value of another type.
    """
    if not isinstance(data, (bool, int, float, str)):
        raise fault(where, f"is {brief_repr(data)}, not a number, a string, true or false")
    kind = parameter.kind if parameter is not None else ""
    if kind == "true or false" and not isinstance(data, bool):
        return _TRUTHS.get(str(data).lower().removesuffix(".0"), data)
    if kind in ("number", "whole number") and isinstance(data, str):
        try:
            return float(data)
        except ValueError:
            return data
    return data


def without_effect(method: Method, data: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the parameters in ``data`` that have no effect in the merge method ``method``."""
    return [name for name in data if _idle(method, name)]


@dataclass(frozen=True)
class NumberedModels:
    """The opened models of a configuration.

    ``numbers`` maps each model to its index in ``views``. ``counts`` has, for each model, the numbers of layers in its
    config.json (empty without a config.json).
    """

    views: Sequence[SourceView]
    numbers: Mapping[ModelReference, int]
    counts: Sequence[Collection[int]]


@dataclass(frozen=True)
class LayerStack:
    """A list of layers of the output; ``origins`` has, for each layer, (index of a model, number of a layer in it)."""

    layers: LayerList
    origins: tuple[tuple[int, int], ...]


@dataclass
class MergeLayout:
    """The tensors of an output, its lists of layers that come from slices, and notes."""

    pieces: list[MergePiece] = field(default_factory=list)
    stacks: list[LayerStack] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)


def pieces_of_configuration(configuration: Configuration, models: NumberedModels, method: Method) -> MergeLayout:
    """Return the tensors that a configuration makes.

    Raises ConfigError for models or values that the method does not accept; PlanError for layers that a model lacks;
    PatternError for a pattern of layers that matches none.
    """
    builder = _Builder(configuration, models, method)
    for part in parts_of(configuration.modules, models.views):
        builder.add(part)
    return builder.layout


class _Builder:
    """Makes the tensors of an output; the parts of the model are added one by one."""

    def __init__(self, configuration: Configuration, models: NumberedModels, method: Method) -> None:
        self._base, self._models, self._method = configuration.base, models, method
        self.layout = MergeLayout(notes=dict.fromkeys(configuration.notes))
        self._settings = self._read("parameters", configuration.parameters)

    def add(self, part: ModelPart) -> None:
        """Add the tensors of a part of the model; raises the errors of ``pieces_of_configuration``."""
        module, views = part.module, self._models.views
        shared = _chained(self._read(f"{module.where}.parameters".strip("."), module.parameters), self._settings)
        if module.models:
            models, base = self._roles(module.models, self._base, "models", whole=True)
            numbers = [self._number(one) for one in models]
            counts = self._models.counts[numbers[0] if base is None else self._number(base)]
            values = self._values(models, shared)
            if module.layers and module.name in WHOLE and not values.depend_on_layers:
                self._lists(
                    module, counts, list(dict.fromkeys(key for number in numbers for key in views[number].tensors))
                )
                self.layout.notes[UNUSED_LAYERS] = None
            self.layout.pieces += pieces_of(
                views, numbers, self._number(base) if base is not None else None, self._method,
                values, owned=part.owns, layers=partial(self._lists, module, counts),
            )  # fmt: skip
            return
        layers = self._layers(module, part.owns)
        slices = [self._slice(one, shared) for one in module.slices]
        self.layout.pieces += sliced_pieces(views, slices, layers, self._method, part.owns)
        origins = [
            (one.sources[0].source, one.sources[0].first + offset) for one in slices for offset in range(one.length)
        ]
        self.layout.stacks.append(LayerStack(layers, tuple(origins)))

    def _lists(self, module: ModuleConfig, counts: Collection[int], keys: Sequence[str]) -> Sequence[LayerList]:
        if not module.layers:
            return layer_lists(keys, counts)
        return [
            layer_list(
                keys, counts, name="the base or first model", pattern=KeyPattern.given(module.layers, "layers: ")
            )
        ]

    def _layers(self, module: ModuleConfig, owns: Callable[[str], bool]) -> LayerList:
        first = self._number(module.slices[0].sources[0])
        view = self._models.views[first]
        keys = [key for key in view.tensors if owns(key)]
        pattern = KeyPattern.given(module.layers, "layers: ") if module.layers else None
        return layer_list(keys, self._models.counts[first], name=view.source.name, pattern=pattern)

    def _slice(self, part: SliceConfig, shared: Settings) -> LayerSlice:
        models, base = self._roles(part.sources, part.base or self._base, part.where, whole=False)
        values = self._values(models, _chained(self._read(f"{part.where}.parameters", part.parameters), shared))
        return LayerSlice(tuple(map(self._source, models)), self._source(base) if base is not None else None, values)

    def _source(self, one: SourceConfig) -> LayerSource:
        first, end = one.layers or (0, 0)
        return LayerSource(self._number(one), first, end, f"{one.where}.layer_range")

    def _number(self, one: SourceConfig) -> int:
        return self._models.numbers[one.model]

    def _values(self, models: Sequence[SourceConfig], shared: Settings) -> ParameterValues:
        own = [self._read(f"{one.where}.parameters", one.parameters) for one in models]
        return ParameterValues(self._method, shared, own, "Set it under parameters, for all models or for each.")

    def _read(self, where: str, data: Mapping[str, object]) -> Settings:
        for name in without_effect(self._method, data):
            self.layout.notes[f"{name} changes nothing in {self._method.name}, and is not needed"] = None
        return settings(self._method, where, data)

    def _roles(
        self, sources: Sequence[SourceConfig], base: ModelReference | None, where: str, *, whole: bool
    ) -> tuple[list[SourceConfig], SourceConfig | None]:
        """Return the models to merge, in the order that the method expects, and the base.

        The base is None if the method uses no base, or if it merges the base like the other models. ``whole`` is true
        if whole models are merged, not slices. Raises ConfigError if the models do not fit the merge method.
        """
        method = self._method
        seen: list[tuple[ModelReference, tuple[int, int] | None]] = []
        for one in sources:
            if (one.model, one.layers) in seen:
                raise fault(one.where, f"lists {one.model.written} again", "List each model once, with its weight.")
            seen.append((one.model, one.layers))
        if base is None and method.base in ("required", "model"):
            raise fault(where, f"has no base_model, which {method.name} needs", "Write base_model: …")
        every, bases = list(sources), [one for one in sources if one.model == base]
        if base is not None and not bases and whole:
            bases = [SourceConfig("base_model", base)]
            every += bases
            if method.base == "none":
                self.layout.notes[f"base_model is merged like the other models: {method.name} has no base"] = None
        if whole and len(self._models.numbers) == 1 and method.needs_others:
            raise fault(where, "has one model, but nothing to merge it with", "Add others, or use passthrough.")
        if method.base == "none" or base is None:
            self._check_number(len(every), where)
            return every, None
        if len(bases) != 1:
            why = "is not one of its sources" if not bases else "is listed more than once in its sources"
            raise fault(where, f"has base_model {base.written}, which {why}", "List it once, with its layer_range.")
        others = [one for one in every if one is not bases[0]]
        if method.base == "model":
            self._check_number(len(every), where)
            return [*bases, *others], None
        self._check_number(len(others), where, " in addition to the base")
        self._say_idle(bases[0])
        return others, bases[0]

    def _say_idle(self, base: SourceConfig) -> None:
        """Check the parameters of the base; if there are any, add a note that they have no effect."""
        if base.parameters:
            self._values([base], {})
            self.layout.notes[f"{base.where}.parameters are not used: this model is the base"] = None

    def _check_number(self, number: int, where: str, counted: str = "") -> None:
        least, most = self._method.models
        if number < least or (most is not None and number > most):
            wanted = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            raise fault(
                where, f"has {count(number, 'model')}{counted}, but {self._method.name} merges {wanted}",
                "Name another number of models, or use another method.",
            )  # fmt: skip


def _chained(first: Settings, then: Settings) -> Settings:
    """Return the settings of each parameter in one list: those in ``first``, which take precedence, come first."""
    return {name: [*first.get(name, ()), *then.get(name, ())] for name in dict.fromkeys([*first, *then])}
