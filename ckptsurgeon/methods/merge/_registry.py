"""All merge methods: the methods of this folder, and the methods in users' plugin files; by name, and as plain data."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from math import isfinite, prod
from os.path import dirname, join, lexists
from types import ModuleType
from typing import Any, cast

import numpy as np

from ...errors import CheckpointError, ConfigError
from ...storage.small_files import CodeLoader
from ...tensors.ops.regions import Array
from ...util.did_you_mean import did_you_mean
from ...util.registry import discover
from ...util.text import brief_repr, count, escape, shape_text
from ._method import Method
from ._slices import Merging, Slice, Tensors, ValuesNeededError

__all__ = ["MergeMethods", "check_number", "load_plugin", "merge_methods", "method_named"]

# Methods of a user's file: their errors give the file, and their results are checked.

FLOATS = ("float16", "float32", "float64")
OURS = join(dirname(dirname(dirname(__file__))), "")


def load_plugin(path: str) -> tuple[Method, ...]:
    """Run a user's file and return the methods in it; raises ConfigError if it fails or has no method.

    A plugin is run only if the user gives its path; a checkpoint, or a recipe in it, cannot make it run.
    """
    if not lexists(path):
        raise ConfigError(f"there is no plugin file {escape(path)}.", hint=did_you_mean(path))
    loader = CodeLoader("ckptsurgeon_plugin", path)
    module = ModuleType(loader.name)
    with _plugin_errors(_PluginLocation(path)):
        loader.exec_module(module)
    found = tuple(value for value in vars(module).values() if isinstance(value, Method))
    if not found:
        raise ConfigError(
            f"the plugin {escape(path)} has no merge method.",
            hint="Decorate a function of the plugin with @merge_method.",
        )
    return tuple(_guarded(path, method) for method in found)


@dataclass(frozen=True)
class _PluginLocation:
    """Where the user's code fails: its file (``path``) and, during a merge, the method and the key of the tensor."""

    path: str
    method: str = ""
    key: str = ""

    def fault(self, what: str, line: int = 0, hint: str = "") -> ConfigError:
        """Return the error that says what failed (``what``), and in which line, method and tensor."""
        places = (("line", line), ("method", escape(self.method)), ("key", escape(self.key)))
        where = ", ".join(f"{name} {value}" for name, value in places if value)
        return ConfigError(f"the plugin {escape(self.path)} fails: {what}{f' ({where})' if where else ''}.", hint=hint)


@contextmanager
def _plugin_errors(place: _PluginLocation) -> Iterator[None]:
    """Turn any error that the user's code raises in the block into a ConfigError.

    During a merge (``place`` has the method), errors of ckptsurgeon itself, also in reading files, are not changed.
    """
    try:
        yield
    except (ValuesNeededError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if place.method and (
            isinstance(error, CheckpointError) or (isinstance(error, OSError) and _is_ours(frames, place.path))
        ):
            raise
        line = next((one.lineno or 0 for one in reversed(frames) if one.filename == place.path), 0)
        if isinstance(error, CheckpointError):
            raise place.fault(error.message.rstrip("."), line, error.hint) from error
        reason = escape(str(error)).rstrip(".")
        raise place.fault(": ".join(part for part in (type(error).__name__, reason) if part), line) from error


def _is_ours(frames: traceback.StackSummary, path: str) -> bool:
    """Return whether ckptsurgeon, and not the user's file ``path``, raised the error with the traceback ``frames``."""
    known = (one.filename for one in reversed(frames) if one.filename == path or one.filename.startswith(OURS))
    return next(known, path) not in (path, __file__)


def _guarded(path: str, method: Method) -> Method:
    """Return a plugin's method with checks: errors name the plugin file ``path``, and wrong results raise errors."""

    @wraps(method.function)
    def function(tensors: Tensors, **parameters: Any) -> Merging | Array:
        place = _PluginLocation(path, method.name, tensors.key)
        with _plugin_errors(place):
            made = method.function(tensors, **parameters)
        if callable(made):
            return _checked(place, made)
        shape = tuple(getattr(made, "shape", ()))
        if fault := _fault(made, tensors.shape, tensors.shape if prod(shape) == prod(tensors.shape) else shape):
            raise place.fault(fault, hint="Return a function of a slice, or a floating array of the tensor's shape.")
        return made

    return replace(method, function=function)


def _checked(place: _PluginLocation, merging: Merging) -> Merging:
    def merged(at: Slice) -> Array:
        with _plugin_errors(place):
            made = merging(at)
        if fault := _fault(made, tuple(at.models[0].shape), tuple(getattr(made, "shape", ())), like=at.models[0]):
            raise place.fault(fault, hint="Return a floating array of the slice's shape.")
        return made

    return merged


def _fault(made: Any, wanted: tuple[int, ...], shape: tuple[int, ...], *, like: Any = None) -> str:
    """Return why ``made``, a method's result, is not a real floating array of the shape ``wanted``; '' if it is.

    ``shape`` is the shape to compare and to show. If ``like`` is given, the result must be of the same library, numpy
    or torch.
    """
    dtype = getattr(made, "dtype", None)
    if dtype is None or (like is not None and _is_numpy(made) != _is_numpy(like)):
        return f"it returns {brief_repr(made)}, not an array of the slice's library (numpy or torch)"
    if str(dtype).removeprefix("torch.") not in FLOATS:
        return f"it returns {dtype}, not float32 or float64"
    return f"it returns the shape {shape_text(shape)}, not {shape_text(wanted)}" if shape != wanted else ""


def _is_numpy(array: Any) -> bool:
    return isinstance(array, (np.ndarray, np.generic))


def merge_methods(plugins: Sequence[Method] = ()) -> Mapping[str, Method]:
    """Return every method by its name, methods of plugins last; raises ConfigError if a name is used twice."""
    found = dict(_bundled_methods())
    for method in plugins:
        if method.name in found:
            raise ConfigError(
                f"there are two merge methods named {escape(method.name)}.", hint="Rename the method in the plugin."
            )
        found[method.name] = method
    return found


@cache
def _bundled_methods() -> Mapping[str, Method]:
    methods = (one for several in discover(__package__, "METHODS").values() for one in cast(Sequence[Method], several))
    return {method.name: method for method in methods}


def method_named(name: str, plugins: Sequence[Method]) -> Method:
    """Return the merge method with this name, built in or from plugins; raises ConfigError for an unknown name."""
    known = merge_methods(plugins)
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(sorted(known))}."
        raise ConfigError(f"there is no merge method {escape(name)}.", hint=hint)
    return known[name]


def check_number(method: Method, number: int, *, has_base: bool) -> None:
    """Raise ConfigError if the number of models, or the presence of a base, is wrong for a method.

    ``number`` is the number of models without the base.
    """
    least, most = method.models
    if method.base == "required" and not has_base:
        raise ConfigError(
            f"the method {method.name} needs the base, from which the other models were trained.",
            hint="Give it with --base.",
        )
    if method.base == "none" and has_base:
        raise ConfigError(
            f"the method {method.name} does not use a base.",
            hint="Leave --base out, or add this model to the models that are merged.",
        )
    merged = number + (method.base == "model" and has_base)
    there = f"there {'are' if merged > 1 else 'is'} {merged or 'none'}{' with the base' if merged > number else ''}"
    if merged < least:
        raise ConfigError(
            f"the method {method.name} needs at least {count(least, 'model')}, but {there}.",
            hint="Give more models.",
        )
    if number == 1 and not has_base and method.needs_others:
        hint = "Add a second model, or a base with --base." if method.base == "optional" else "Give another model."
        raise ConfigError("only one model is given, so there is nothing to merge it with.", hint=hint)
    if most is not None and merged > most:
        raise ConfigError(
            f"the method {method.name} merges at most {count(most, 'model')}, but {there}.",
            hint="Use another method, or give fewer models.",
        )


# The merge methods as plain data: description, parameters, paper.


@dataclass(frozen=True)
class MergeMethods:
    """All merge methods, by name."""

    methods: Mapping[str, Method]

    def to_json(self) -> dict[str, Any]:
        """Return the methods as plain data, for JSON."""
        return {
            "kind": "ckpt.merge_methods",
            "version": 1,
            "methods": [_method_json(one) for one in self.methods.values()],
        }


def _method_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paper": method.paper,
        "compared": method.compared,
        "base": method.base,
        "models": list(method.models),
        "passes": method.passes,
        "parameters": [
            {
                "name": one.name, "kind": one.kind, "default": one.default, "by_model": one.each,
                "bounds": [bound if isfinite(bound) else None for bound in (one.bounds.low, one.bounds.high)],
                "choices": list(one.choices),
            }
            for one in method.parameters
        ],
    }  # fmt: skip
