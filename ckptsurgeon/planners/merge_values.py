"""The values that the parameters of a merge have for each tensor: given once, by pattern, by layer, by model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ConfigError
from ..keys import KeyMatcher, KeyPattern, unmatched
from ..merges import Method, Parameter
from ..plan import Value
from ..text import count, escape

__all__ = ["Depths", "Setting", "Settings", "Values"]


@dataclass(frozen=True)
class Setting:
    """A value of a parameter for the keys that a pattern matches, all where there is none.

    ``value`` may be one for each model (``models``), or a gradient over the layers (``layers``): points that are as far
    from each other as the first layer is from the last, straight lines between them.
    """

    value: Value = 0.0
    pattern: KeyPattern | None = None
    models: tuple[Value, ...] = ()
    layers: tuple[float, ...] = ()

    def at(self, model: int, depth: float) -> Value:
        """Return the value for a model, at a depth from 0, the first layer, to 1, the last."""
        if self.models:
            return self.models[model]
        if not self.layers:
            return self.value
        place = depth * (len(self.layers) - 1)
        below = min(int(place), len(self.layers) - 1)
        above = min(below + 1, len(self.layers) - 1)
        return self.layers[below] + (self.layers[above] - self.layers[below]) * (place - below)


Settings: TypeAlias = Mapping[str, Sequence[Setting]]
"""The settings of each parameter by its name; of those that match a key the first wins."""

INPUT = re.compile(r"(^|[._])(embed\w*|wte|wpe|tok_embeddings|word_embeddings|position_embeddings)([._]|$)")
"""Names of what comes before the first layer."""


class Depths:
    """How deep each key lies: 0 in the first layer of its kind, 1 in the last; what has no layer is before or after.

    A layer is a number in a key, the first one; all keys with the same name before it are of one kind.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for key in keys:
            kind, layer = _layer(key)
            if layer is not None:
                self._last[kind] = max(self._last.get(kind, 0), layer)

    def of(self, key: str) -> float:
        """Return the depth of a key, from 0 to 1."""
        kind, layer = _layer(key)
        if layer is None:
            return 0.0 if INPUT.search(key) else 1.0
        return layer / self._last[kind] if self._last.get(kind) else 0.0


def _layer(key: str) -> tuple[str, int | None]:
    segments = key.split(".")
    for place, segment in enumerate(segments):
        if segment.isascii() and segment.isdigit():
            return ".".join(segments[:place]), int(segment)
    return "", None


class Values:
    """The values of a method's parameters, by key and model.

    ``own`` are the settings of each model, which win over those ``shared`` by all. Raises ConfigError for a parameter
    that the method does not have, that has to be given and is not, or whose value is not of its kind.
    """

    def __init__(self, method: Method, shared: Settings, own: Sequence[Settings]) -> None:
        self._method, self._shared, self._own = method, shared, own
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
                        f"{name} of {method.name} is one for all models.", hint="Give it once, and not by model."
                    )

    def _check(self, parameter: Parameter, setting: Setting) -> None:
        if setting.models and not parameter.each:
            raise ConfigError(f"{parameter.name} of {self._method.name} is one for all models, not one for each.")
        if setting.models and len(setting.models) != len(self._own):
            raise ConfigError(
                f"{parameter.name} has {count(len(setting.models), 'value')} for {count(len(self._own), 'model')}."
            )
        for value in setting.models or setting.layers or (setting.value,):
            parameter.checked(value)

    def patterns(self) -> list[tuple[str, KeyPattern]]:
        """Return every pattern with the parameter it is for."""
        every = (self._shared, *self._own)
        return [
            (name, one.pattern) for settings in every for name, found in settings.items()
            for one in found if one.pattern is not None
        ]  # fmt: skip

    def check_patterns(self, keys: Sequence[str]) -> None:
        """Raise PatternError for a pattern that matches none of the keys."""
        named = self.patterns()
        for (name, pattern), hits in zip(named, KeyMatcher([one for _, one in named]).hits(keys), strict=True):
            if not hits:
                raise unmatched(f"{name} of {pattern.text}", pattern, keys, "output")

    def of(self, key: str, models: Sequence[int], depth: float) -> dict[str, Value | tuple[Value, ...]]:
        """Return the parameters for a key, whose inputs are of these models; ``depth`` is from 0 to 1."""
        return {
            one.name: tuple(self._one(one, key, model, depth) for model in models)
            if one.each
            else self._one(one, key, None, depth)
            for one in self._method.parameters
        }

    def _one(self, parameter: Parameter, key: str, model: int | None, depth: float) -> Value:
        own = self._own[model].get(parameter.name, ()) if model is not None else ()
        for setting in (*own, *self._shared.get(parameter.name, ())):
            if setting.pattern is None or setting.pattern.matches(key):
                return parameter.checked(setting.at(model or 0, depth))
        if parameter.default is None:
            raise ConfigError(
                f"{self._method.name} needs a {parameter.name}{' for each model' if parameter.each else ''}"
                f"{f' (for {escape(key)})' if self.patterns() else ''}.",
                hint=f"Give it with {_flag(parameter)}.",
            )
        return parameter.default


def _flag(parameter: Parameter) -> str:
    return "--weights 0.5,0.5" if parameter.name == "weight" else f"--param {parameter.name}=VALUE"


def _check_known(method: Method, name: str, known: Mapping[str, Parameter]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known) or 'none'}."
        raise ConfigError(f"the merge method {method.name} has no parameter {escape(name)}.", hint=hint)
