"""Finds the method of a merge by its name, and parses and checks its parameters before any file is opened."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from sys import float_info
from typing import Any

from ...errors import ConfigError
from ...methods.merge._method import Method
from ...methods.merge._registry import MergeMethods, load_plugin, merge_methods
from ...planning.keys.pattern import KeyPattern
from ...planning.merge.pieces import ParameterSetting, Settings
from ...util.text import brief_repr, count, escape
from ..inputs.argument_types import CheckpointLike, Given, Parameters, Path

__all__ = [
    "GRADIENT",
    "check_names",
    "check_number",
    "given_settings",
    "list_methods",
    "method_named",
    "method_settings",
    "parameter_name",
    "plain_settings",
]

GRADIENT = "gradient"
"""The key in ``{"gradient": [...]}``, the value of a parameter: a list of values from the first layer to the last."""


def method_named(name: str, plugins: Sequence[Method]) -> Method:
    """Return the merge method with this name, built in or from plugins; raises ConfigError for an unknown name."""
    known = merge_methods(plugins)
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(sorted(known))}."
        raise ConfigError(f"there is no merge method {escape(name)}.", hint=hint)
    return known[name]


def check_names(method: Method, more: Iterable[str], arguments: Iterable[str]) -> None:
    """Raise ConfigError if a name in ``more`` is not a parameter of the method.

    ``arguments`` are the names of the arguments of ``merge``: the hint of the error may suggest one of them.
    """
    known = [one.name for one in method.parameters]
    for name in map(parameter_name, more):
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *arguments], n=1)
            its = f"The parameters of {method.name} are {', '.join(known) or 'none'}."
            raise ConfigError(
                f"{escape(name)} is neither an argument of merge nor a parameter of the method {method.name}.",
                hint=f"Did you mean {near[0]}?" if near else its,
            )


def check_number(method: Method, number: int, base: CheckpointLike | None) -> None:
    """Raise ConfigError if the number of models, or the presence of a base, is wrong for a method.

    ``number`` is the number of models without the base. ``base`` is None if the user gave none.
    """
    least, most = method.models
    if method.base == "required" and base is None:
        raise ConfigError(
            f"the method {method.name} needs the base, from which the other models were trained.",
            hint="Give it with --base.",
        )
    if method.base == "none" and base is not None:
        raise ConfigError(
            f"the method {method.name} does not use a base.",
            hint="Leave --base out, or add this model to the models that are merged.",
        )
    merged = number + (method.base == "model" and base is not None)
    if merged < least:
        raise ConfigError(
            f"the method {method.name} needs at least {count(least, 'model')}, but there is {merged or 'none'}.",
            hint="Give more models.",
        )
    if number == 1 and base is None and method.needs_others:
        hint = "Add a second model, or a base with --base." if method.base == "optional" else "Give another model."
        raise ConfigError("only one model is given, so there is nothing to merge it with.", hint=hint)
    if most is not None and merged > most:
        raise ConfigError(
            f"the method {method.name} merges at most {count(most, 'model')}, but there are {merged}.",
            hint="Use another method, or give fewer models.",
        )


def list_methods(plugin: Path | None = None) -> MergeMethods:
    """Return the merge methods, including those in the Python file ``plugin``, which is run."""
    return MergeMethods(merge_methods(load_plugin(os.fspath(plugin)) if plugin is not None else ()))


def method_settings(method: Method, given: Mapping[str, Any] | Sequence[str] | None) -> Settings:
    """Return the parsed parameters of a merge method, by name.

    ``given`` maps names to values, or is a list of strings as on the command line: NAME=VALUE or NAME:GLOB=VALUE, with
    a gradient in brackets. A value is a number, a string or a boolean; a list with one number for each model; or
    ``{"gradient": [0, 0.5, 1]}`` for values from the first layer to the last. It may also be a map from patterns to
    such values, in which the last pattern that matches a key wins.

    Raises ConfigError for anything else, PatternError for an invalid pattern.
    """
    if not isinstance(given, Mapping):
        found: dict[str, list[ParameterSetting]] = {}
        for text in [given] if isinstance(given, str) else given or ():
            name, setting = _from_text(text)
            if setting.pattern is None and any(one.pattern is None for one in found.get(name, ())):
                raise ConfigError(f"the parameter {escape(name)} is given twice for all keys.", hint="Leave one out.")
            found.setdefault(name, []).insert(0, setting)
        return found
    each = {one.name for one in method.parameters if one.each}
    return {name: _settings(name, value, by_model=name in each) for name, value in given.items()}


def _settings(name: str, value: Any, *, by_model: bool) -> list[ParameterSetting]:
    if isinstance(value, Mapping) and not value:
        raise ConfigError(
            f"the parameter {escape(name)} is an empty map.", hint="Give values by pattern, or leave the parameter out."
        )
    if isinstance(value, Mapping) and set(value) != {GRADIENT}:
        pairs = [(KeyPattern.given(_pattern(name, text), ""), one) for text, one in value.items()]
        return [_setting(name, one, by_model=by_model, pattern=pattern) for pattern, one in reversed(pairs)]
    return [_setting(name, value, by_model=by_model)]


def _pattern(name: str, text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ConfigError(f"the parameter {escape(name)} has {brief_repr(text, 40)}, which is not a pattern of keys.")
    return text


def _setting(name: str, value: Any, *, by_model: bool, pattern: KeyPattern | None = None) -> ParameterSetting:
    if isinstance(value, Mapping) and set(value) == {GRADIENT}:
        return ParameterSetting(pattern=pattern, layers=_numbers(name, value[GRADIENT]))
    if isinstance(value, (list, tuple)):
        numbers = _numbers(name, value)
        return (
            ParameterSetting(pattern=pattern, models=numbers)
            if by_model
            else ParameterSetting(pattern=pattern, layers=numbers)
        )
    if not isinstance(value, (bool, int, float, str)):
        raise ConfigError(
            f"the parameter {escape(name)} is {brief_repr(value)}, which is not a valid value.",
            hint="Use a number, a string or a list.",
        )
    return ParameterSetting(value, pattern)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(f"the parameter {escape(name)} is {brief_repr(values)}, not a list of numbers.")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"the parameter {escape(name)} has {brief_repr(value, 40)}, which is not a number.")
        if isinstance(value, int) and abs(value) > float_info.max:
            raise ConfigError(
                f"the parameter {escape(name)} has {brief_repr(value, 40)}, which is too large for double precision."
            )
    return tuple(map(float, values))


def _from_text(text: str) -> tuple[str, ParameterSetting]:
    """Return the name and the setting of a parameter given as ``weight=0.3,0.7`` or ``t:layers.*.mlp=0.2``.

    Raises ConfigError for any other form, and for an invalid value.
    """
    head, equals, said = text.rpartition("=")
    name, colon, glob = head.partition(":")
    if not (equals and name and said) or (colon and not glob):
        raise ConfigError(
            f"--param {escape(text)} does not have the form NAME=VALUE.",
            hint="Write density=0.5, or density:GLOB=0.5 for some keys.",
        )
    pattern = KeyPattern.given(glob, f"--param {name}:", f"={said}") if glob else None
    if "," in said and not said.startswith("["):
        values = [_read(name, one) for one in said.split(",")]
        return name, ParameterSetting(pattern=pattern, models=_numbers(name, values))
    return name, _setting(name, _read(name, said), by_model=False, pattern=pattern)


def _read(name: str, text: str) -> Any:
    try:
        if text.strip()[:1] in "+-.0123456789":
            return float(text)
        from ...storage.yaml_text import read_yaml

        return read_yaml(text, f"--param {name}")
    except ValueError:
        return text


def given_settings(
    method: Method,
    parameters: Parameters,
    more: Mapping[str, Given],
    weights: Sequence[float] | None,
) -> Settings:
    """Return a method's parsed parameters from ``parameters``, the arguments ``more`` and ``weights`` together.

    ``weights`` is the parameter ``weight`` for all keys; ``parameters`` may contain weights for patterns, which have
    priority. Raises ConfigError for a parameter that is given twice.
    """
    found = dict(method_settings(method, parameters))
    for name, settings in method_settings(
        method, {parameter_name(name): value for name, value in more.items()}
    ).items():
        if name in found:
            raise _twice(name)
        found[name] = settings
    if weights is None:
        return found
    scoped = found.pop("weight", ())
    if any(map(_is_for_all, scoped)):
        raise _twice("weight")
    return {"weight": [*scoped, *method_settings(method, {"weight": list(weights)})["weight"]], **found}


def _twice(name: str) -> ConfigError:
    return ConfigError(f"the parameter {escape(name)} is given twice.", hint="Leave one of the two out.")


def _is_for_all(one: ParameterSetting) -> bool:
    return one.is_for_all or (one.pattern is not None and one.pattern.text == "**")


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return parsed parameters as plain data, which ``method_settings`` can parse."""
    return {name: _plain_value(found) for name, found in settings.items()}


def _plain_value(found: Sequence[ParameterSetting]) -> Any:
    said = {one.pattern.text if one.pattern else "**": _value(one) for one in reversed(found)}
    return said["**"] if len(said) == 1 and "**" in said else said


def _value(one: ParameterSetting) -> Any:
    return list(one.models) if one.models else {GRADIENT: list(one.layers)} if one.layers else one.value


def parameter_name(argument: str) -> str:
    """Return the name of the parameter for a Python argument: ``lambda`` for ``lambda_`` (``lambda`` is a keyword)."""
    return argument.rstrip("_")
