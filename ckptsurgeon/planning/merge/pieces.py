"""The tensors of a merge: what is merged into each, and with which values of the method's parameters.

The values may depend on patterns, layers and models.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias

from ...errors import ConfigError, PatternError
from ...methods.merge._method import Method, Parameter
from ...util.text import count, escape
from ..keys.pattern import KeyPattern
from ..keys.pattern_hints import deeper_notes, unmatched
from ..keys.spelling import quoted
from ..plan.compute import Value
from ..plan.files import SourceView
from .layers import LayerDepths, LayerList, depth_in

__all__ = [
    "MergePiece",
    "ParameterSetting",
    "ParameterValues",
    "Settings",
    "SourceKey",
    "check_matched",
    "overlooked",
    "pieces_of",
]


# The values of the parameters of a merge method.


@dataclass(frozen=True)
class ParameterSetting:
    """A parameter's value for the keys that match ``pattern`` and contain the string ``contains``.

    If both are empty, the setting applies to all keys. Instead of ``value`` there may be a value for each model
    (``models``), or values that change with the layers (``layers``): equally spaced points from the first layer to the
    last, with linear interpolation. Values that are not numbers are not interpolated: each holds until the next point.
    """

    value: Value = 0.0
    pattern: KeyPattern | None = None
    models: tuple[Value, ...] = ()
    layers: tuple[Value, ...] = ()
    contains: str = ""

    @property
    def is_for_all(self) -> bool:
        """Whether the setting applies to every key."""
        return self.pattern is None and not self.contains

    def matches(self, key: str) -> bool:
        """Return whether the setting applies to a key."""
        return self.contains in key and (self.pattern is None or self.pattern.matches(key))

    def at(self, model: int, depth: float) -> Value:
        """Return the value for a model at a depth, which is 0 in the first layer and 1 in the last."""
        if self.models:
            return self.models[model]
        if not self.layers:
            return self.value
        place = depth * (len(self.layers) - 1)
        below = min(int(place), len(self.layers) - 1)
        first, second = self.layers[below], self.layers[min(below + 1, len(self.layers) - 1)]
        if not (_is_number(first) and _is_number(second)):
            return first
        return (1 - (place - below)) * float(first) + (place - below) * float(second)


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


Settings: TypeAlias = Mapping[str, Sequence[ParameterSetting]]
"""The settings of each parameter by its name; the first setting that matches a key applies."""


class ParameterValues:
    """The values of a merge method's parameters for each key and each model.

    ``own`` has the settings of each model; they override the settings in ``shared``, which are for all models. Raises
    ConfigError for a parameter that the method does not have, for a missing parameter, or for a value of the wrong
    kind. ``how`` is the hint for a missing parameter; by default the hint is the option of the command line.
    """

    def __init__(self, method: Method, shared: Settings, own: Sequence[Settings], how: str = "") -> None:
        self._method, self._shared, self._own, self._how = method, shared, own, how
        self._kept: dict[tuple[int, ...], dict[str, Value | tuple[Value, ...]]] = {}
        known = {one.name: one for one in method.parameters}
        for settings in (shared, *own):
            for name, found in settings.items():
                _check_known(method, name, known)
                for setting in found:
                    self._check(known[name], setting)
        for settings in own:
            for name in settings:
                if not known[name].each:
                    raise ConfigError(
                        f"the parameter {name} of the merge method {method.name} must have one value for all models.",
                        hint="Give one value for all models together, not one for each.",
                    )

    def _check(self, parameter: Parameter, setting: ParameterSetting) -> None:
        if setting.models and not parameter.each:
            raise ConfigError(
                f"the parameter {parameter.name} of the merge method {self._method.name} must have one value for all "
                "models, not one for each.",
                hint="Give a single value.",
            )
        if setting.models and len(setting.models) != len(self._own):
            raise ConfigError(
                f"the parameter {parameter.name} has {count(len(setting.models), 'value')} for "
                f"{count(len(self._own), 'model')}.",
                hint="Give one value for each model.",
            )
        for value in setting.models or setting.layers or (setting.value,):
            parameter.checked(value)

    def conditions(self) -> list[tuple[str, int | None, ParameterSetting]]:
        """Return the settings that do not apply to all keys, each with its parameter and model (None: all models)."""
        scopes = [(None, self._shared), *enumerate(self._own)]
        return [
            (name, model, one) for model, settings in scopes for name, found in settings.items()
            for one in found if not one.is_for_all
        ]  # fmt: skip

    def of(self, key: str, models: Mapping[int, str], depth: float) -> dict[str, Value | tuple[Value, ...]]:
        """Return the values of all parameters for an output key; some have a tuple with a value for each model.

        ``models`` maps the index of each model to the key that the tensor has in it. ``depth`` is 0 in the first layer,
        1 in the last.
        """
        if not self._are_alike:
            return self._of(key, models, depth)
        numbers = tuple(models)
        if numbers not in self._kept:  # a model may have a hundred thousand tensors
            self._kept[numbers] = self._of(key, models, depth)
        return dict(self._kept[numbers])

    def _of(self, key: str, models: Mapping[int, str], depth: float) -> dict[str, Value | tuple[Value, ...]]:
        return {
            one.name: tuple(self._one(one, name, model, depth) for model, name in models.items())
            if one.each
            else self._one(one, key, None, depth)
            for one in self._method.parameters
        }

    @cached_property
    def _are_alike(self) -> bool:
        """Whether the values are the same for all tensors: they do not depend on the key or the depth."""
        return not self.depend_on_layers and not self.conditions()

    @cached_property
    def depend_on_layers(self) -> bool:
        """Whether any value is a gradient, from the first layer to the last."""
        every = [one for settings in (self._shared, *self._own) for found in settings.values() for one in found]
        return any(one.layers for one in every)

    def _one(self, parameter: Parameter, key: str, model: int | None, depth: float) -> Value:
        own = self._own[model].get(parameter.name, ()) if model is not None else ()
        for setting in (*own, *self._shared.get(parameter.name, ())):
            if setting.matches(key):
                return parameter.checked(setting.at(model or 0, depth))
        if parameter.default is None:
            raise ConfigError(
                f"the merge method {self._method.name} needs a {parameter.name}"
                f"{' for each model' if parameter.each else ''}"
                f"{f' (for {escape(key)})' if self.conditions() else ''}.",
                hint=self._how or f"Give it with {_flag(parameter, len(self._own))}.",
            )
        return parameter.default


def _flag(parameter: Parameter, models: int) -> str:
    """Return an example of the option that sets a parameter: --weights with a value for each model, or --param."""
    if parameter.name != "weight":
        return f"--param {parameter.name}=VALUE"
    return f"--weights {','.join([f'{1 / models:.2g}'] * models)}"


def _check_known(method: Method, name: str, known: Mapping[str, Parameter]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Its parameters: {', '.join(known) or 'none'}."
        raise ConfigError(f"the merge method {method.name} has no parameter {escape(name)}.", hint=hint)


def check_matched(used: Iterable[tuple[ParameterValues, str, Sequence[str]]]) -> None:
    """Raise PatternError for a setting that applies to no tensor.

    ``used`` has, for each tensor, its parameter values, its key in the output and its keys in the models.
    """
    pending: dict[int, tuple[str, ParameterSetting, dict[str, None]]] = {}
    matched: set[int] = set()
    conditions: dict[int, list[tuple[str, int | None, ParameterSetting]]] = {}
    for values, key, own in used:
        for name, model, setting in conditions.setdefault(id(values), values.conditions()):
            if id(setting) in matched:
                continue
            keys = (key, *own) if model is None else own[model : model + 1]
            pending.setdefault(id(setting), (name, setting, {}))[2].update(dict.fromkeys(keys))
            if any(map(setting.matches, keys)):
                matched.add(id(setting))
    for number, (name, setting, seen) in pending.items():
        if number not in matched:
            raise _unmatched(name, setting, list(seen))


def overlooked(used: Iterable[ParameterValues], keys: Sequence[str]) -> list[str]:
    """Return notes on settings whose patterns match few output keys, but would match many more after ``**.``.

    There is also a note on a word in a pattern's list, as in ``{a,b}``, if it matches no key.
    """
    once = {id(values): values for values in used}
    patterns = {
        f"{name} of {setting.pattern.text}": setting.pattern
        for values in once.values()
        for name, _, setting in values.conditions()
        if setting.pattern is not None and not setting.contains
    }
    return deeper_notes(patterns.items(), keys) if patterns else []


def _unmatched(name: str, setting: ParameterSetting, keys: Sequence[str]) -> PatternError:
    if setting.pattern is not None:
        return unmatched(f"{name} of {setting.pattern.text}", setting.pattern, keys, "output")
    pattern = KeyPattern(f"**.{quoted(setting.contains)}")
    return unmatched(f"{name} with filter {escape(setting.contains)}", pattern, keys, "output")


# The tensors of the output.


class SourceKey(NamedTuple):
    """A tensor of a model: the model's index in the sources, and the tensor's key in the model."""

    source: int
    key: str


class MergePiece(NamedTuple):
    """A tensor of the output, the tensors of the models and the base that are merged into it, and the merge method.

    ``models`` has an entry for each model, even if it lacks the tensor. If ``values`` depend on layers, ``depth`` is 0
    in the first layer and 1 in the last.
    """

    key: str
    models: tuple[SourceKey, ...]
    base: SourceKey | None
    method: Method
    values: ParameterValues
    depth: float


def pieces_of(
    views: Sequence[SourceView],
    models: Sequence[int],
    base: int | None,
    method: Method,
    values: ParameterValues,
    *,
    owned: Callable[[str], bool] = lambda key: True,
    layers: Callable[[Sequence[str]], Sequence[LayerList]] | None = None,
) -> list[MergePiece]:
    """Return the tensors of an output that merges all tensors with the same name.

    ``models`` and ``base`` are indices in ``views``. The tensors of the base come first, in its order. Keys for which
    ``owned`` returns False are left out.

    If ``values`` depend on layers, each tensor has a depth: 0 in the first layer, 1 in the last. If ``layers`` is
    given, it finds the lists of layers in the keys, and keys outside the lists have the depth 0. Otherwise the number
    of a layer is the first number in a key. Keys without a number have the depth 0 if they belong to input embeddings,
    else 1.
    """
    order = [*([base] if base is not None else []), *models]
    keys = list(dict.fromkeys(key for index in order for key in views[index].tensors if owned(key)))
    depths = dict.fromkeys(keys, 0.0)
    if values.depend_on_layers:
        depth = partial(depth_in, layers(keys)) if layers is not None else LayerDepths(keys).of
        depths = {key: depth(key) for key in keys}
    return [
        MergePiece(
            key, tuple(SourceKey(index, key) for index in models), SourceKey(base, key) if base is not None else None,
            method, values, depths[key],
        )
        for key in keys
    ]  # fmt: skip
