"""Reads destinations that list their tensors: ``model: {tensors: {key: {shape, dtype, init}}, tied: [[key, key]]}``.

Tensors with ``init: like`` start with the values of a checkpoint. The field ``values`` is the path of that checkpoint,
and the field ``root`` chooses one of its state dicts. For other tensors, ``init`` is the name of a function of
``torch.nn.init`` without its last underscore, alone (``ones``) or with arguments (``{normal: {std: 0.02}}``); or
``arange``: 0, 1, 2, … along the last axis. It may also be a number, to which all values are set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any

from ..errors import ConfigError
from ..planning.target import InitialFile, TargetSpec, Undrawable
from ..tensors.dtypes import DTYPES, dtype_named
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, count, escape, shape_text
from ._document import Document, check_fields
from ._initial_values import DEVIATION, LIKE, ZERO_DEVIATION, Init, file_with, initial_values

__all__ = ["CONFIG", "unfit"]

NO_INIT = Undrawable(
    "does not say how to initialise {keys}, and no source has all of the values",
    "Give each of these tensors a field init in the destination's file.",
)


class _Declared:
    field = "tensors"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): a destination that lists its tensors runs no code of the user."""
        return ()

    def load(self, document: Document) -> TargetSpec:
        """Return the destination that the section ``model:`` lists.

        Raises ConfigError for unknown or malformed fields, or initialisers that do not fit their tensor.
        """
        check_fields(document, "model", document.model, ("tensors", "tied", "values", "root"))
        rows = document.model["tensors"]
        if not isinstance(rows, dict) or not rows:
            raise document.fail("the field 'tensors' must map at least one key to {shape, dtype, init}.")
        tensors: dict[str, TensorInfo] = {}
        inits: dict[str, Init] = {}
        kept: dict[str, TensorInfo] = {}
        for key, row in rows.items():
            tensors[str(key)] = _info(document, key, row)
            if row.get("init") == LIKE:
                kept[str(key)] = tensors[str(key)]
            elif row.get("init") is not None:
                inits[str(key)] = read_init(document, str(key), tensors[str(key)], row["init"])
        ties = _ties(document, tensors, inits, kept)
        given = _given(document, kept, ties)
        return TargetSpec(
            kind="tensors",
            name=document.name,
            tensors=tensors,
            ties=ties,
            initial=lambda keys, seed: initial_values(tensors, inits, given, keys, seed),
            given=given,
            undrawable={
                **{key: NO_INIT for key in tensors if key not in inits and key not in kept and key not in ties},
                **{key: ZERO_DEVIATION for key, init in inits.items() if _is_zero(init) and DEVIATION.fullmatch(key)},
            },
            config=document.path,
        )


def _info(document: Document, key: Any, row: Any) -> TensorInfo:
    if not isinstance(key, str):
        quoted = f': "{key}"' if type(key) is int else ""
        raise document.fail(f"the tensor key {brief_repr(key, 80)} is not a string.", f"Write it in quotes{quoted}.")
    if not isinstance(row, dict) or "shape" not in row:
        raise document.fail(f"the tensor {escape(key)} has no shape.", "Write the size of each axis: shape: [256, 80].")
    check_fields(document, f"tensor {escape(key)}", row, ("shape", "dtype", "init"))
    shape = row["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 64:
        raise document.fail(
            f"the shape of the tensor {escape(key)} is {brief_repr(shape, 80)}, not a list of at most 64 sizes."
        )
    try:
        return TensorInfo(dtype_named(str(row.get("dtype", "float32"))), tuple(shape))
    except ConfigError as error:
        raise document.fail(f"tensor {escape(key)}: {error.said}") from None


def _is_zero(init: Init) -> bool:
    return init.name == "zeros" or (init.name == "constant" and init.arguments.get("val") == 0)


def _ties(
    document: Document, tensors: Mapping[str, TensorInfo], inits: dict[str, Init], kept: Collection[str]
) -> dict[str, str]:
    """Return a map from each tied key to the first key of its group; raises ConfigError if a group is not valid.

    If the first key of a group has no initialiser but a later key has one, ``inits`` gets that initialiser for the
    first key. ``kept`` are the keys with ``init: like``.
    """
    ties: dict[str, str] = {}
    order = {key: i for i, key in enumerate(tensors)}
    groups = document.model.get("tied") or []
    if not isinstance(groups, list):
        raise document.fail(f"the field 'tied' is {brief_repr(groups, 80)}, not a list of lists of keys.")
    seen: set[str] = set()
    for group in groups:
        if not isinstance(group, list) or len(group) < 2:
            raise document.fail(f"in the field 'tied', {brief_repr(group, 80)} is not a list of two or more keys.")
        unknown = [key for key in group if not isinstance(key, str) or key not in tensors]
        if unknown:
            raise document.fail(
                f"in the field 'tied', {brief_repr(unknown[0], 80)} is not a key of the field 'tensors'."
            )
        twice = [key for key in group if key in seen or group.count(key) > 1]
        if twice:
            raise document.fail(
                f"the field 'tied' has the key {escape(twice[0])} twice.", "Write all keys of one tensor in one list."
            )
        seen.update(group)
        first, *rest = sorted(group, key=order.__getitem__)
        for key in rest:
            if tensors[key] != tensors[first]:
                raise document.fail(
                    f"the tensor {escape(key)}, {_type_text(tensors[key])}, is tied to {escape(first)}, "
                    f"{_type_text(tensors[first])}: tied tensors must have the same shape and dtype."
                )
            if key in inits and (first in kept or inits.setdefault(first, inits[key]) != inits[key]):
                raise document.fail(
                    f"the tensor {escape(key)} is tied to {escape(first)}, but has a different initialiser."
                )
            ties[key] = first
    return ties


def _type_text(info: TensorInfo) -> str:
    return f"{info.dtype} {shape_text(info.shape)}"


def _given(document: Document, kept: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> tuple[InitialFile, ...]:
    """Return a tuple with the checkpoint that has the initial values of the tensors ``kept``; () if ``kept`` is empty.

    Raises the errors of ``file_with``, and ConfigError if the fields of that checkpoint are given but not needed.
    """
    if kept:
        return (file_with(document, kept, ties),)
    if any(document.model.get(name) is not None for name in ("values", "root")):
        raise document.fail(
            "the fields values and root are only used for tensors with init: like, and no tensor has init: like."
        )
    return ()


# Initialisers.

_AT_LEAST_2 = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal")
_ARGUMENTS = {
    "uniform": ("a", "b"), "normal": ("mean", "std"), "trunc_normal": ("mean", "std", "a", "b"),
    "constant": ("val",), "ones": (), "zeros": (), "eye": (), "dirac": ("groups",), "arange": (),
    "xavier_uniform": ("gain",), "xavier_normal": ("gain",),
    "kaiming_uniform": ("a", "mode", "nonlinearity"), "kaiming_normal": ("a", "mode", "nonlinearity"),
    "orthogonal": ("gain",), "sparse": ("sparsity", "std"),
}  # fmt: skip
"""Initialisers and their arguments, as in ``torch.nn.init``; ``arange`` is ours: 0, 1, 2, …, as for position ids."""
_CHOICES = {
    "mode": ("fan_in", "fan_out"),
    "nonlinearity": (
        "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid",
        "tanh", "relu", "leaky_relu", "selu",
    ),
}  # fmt: skip
_NEEDED = {"constant": "val", "sparse": "sparsity"}
_BOUNDS = {"uniform": (0.0, 1.0), "trunc_normal": (-2.0, 2.0)}
"""The default bounds ``a`` and ``b`` of initialisers that draw between them."""

_EXACT = ("constant", "ones", "zeros", "eye", "arange")
"""Initialisers that can fill tensors of integers and booleans."""


def read_init(document: Document, key: str, info: TensorInfo, spec: Any) -> Init:
    """Return the initialiser that ``spec`` describes; raises ConfigError if it is unknown or does not fit the tensor.

    ``spec`` is the value of the field ``init`` of the tensor ``key``.
    """
    if isinstance(spec, (int, float)):
        spec = {"constant": {"val": spec}}
    name, arguments = next(iter(spec.items())) if isinstance(spec, dict) and len(spec) == 1 else (spec, {})
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise document.fail(
            f"the tensor {escape(key)} has an unknown initialiser: {brief_repr(spec)}.",
            f"Use like, a number, or one of {', '.join(_ARGUMENTS)}.",
        )
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise document.fail(f"the arguments of the initialiser {name} of the tensor {escape(key)} are not a map.")
    check_fields(document, f"{name} of {escape(key)}", arguments, _ARGUMENTS[name])
    needed = _NEEDED.get(name)
    if needed and needed not in arguments:
        raise document.fail(f"the initialiser {name} of the tensor {escape(key)} needs the argument {needed}.")
    why = unfit(info, name) or _bad_arguments(info, name, arguments)
    if why:
        raise document.fail(f"{name} cannot initialise the tensor {escape(key)}: {why}.")
    return Init(name, arguments)


def unfit(info: TensorInfo, name: str) -> str:
    """Return the reason why the initialiser ``name`` does not fit a tensor with this shape and dtype; '' if it fits."""
    dims, dtype = len(info.shape), DTYPES[info.dtype]
    wanted = {"eye": dims == 2, "sparse": dims == 2, "dirac": 3 <= dims <= 5, "arange": dims >= 1}.get(name, True)
    if not wanted or (name in _AT_LEAST_2 and dims < 2):
        needed = {"eye": "2", "sparse": "2", "dirac": "3 to 5", "arange": "1 or more"}.get(name, "2 or more")
        return f"it has {count(dims, 'dimension')}, not {needed}"
    if name != "zeros" and (dtype.kind in ("quantized", "bits") or dtype.values > 1 or dtype.bits % 8):
        return f"a tensor of {info.dtype} can only be initialised with zeros"
    if name not in _EXACT and not dtype.is_floating:
        return f"its dtype is {info.dtype}, not a floating-point dtype"
    if name == "arange" and info.numel and not _holds(info.dtype, info.shape[-1] - 1):
        return f"{info.dtype} cannot represent the last value, {info.shape[-1] - 1}"
    return ""


def _bad_arguments(info: TensorInfo, name: str, arguments: Mapping[str, Any]) -> str:
    """Return what is wrong with the arguments of an initialiser; '' if they are valid."""
    for argument, value in arguments.items():
        choices = _CHOICES.get(argument)
        if choices is not None and value not in choices:
            return f"{argument} is {brief_repr(value, 40)}, not one of {', '.join(choices)}"
        if choices is None and not isinstance(value, (int, float)):
            return f"{argument} is {brief_repr(value, 40)}, not a number"
        if choices is None and not (_is_finite(value) or (name == "constant" and isinstance(value, float))):
            return f"{argument} is {brief_repr(value, 40)}, not a finite number"
    low, high = (arguments.get(side, bound) for side, bound in zip("ab", _BOUNDS.get(name, (0, 0)), strict=True))
    if name in _BOUNDS and low > high:
        return f"its lower bound a is {low}, above its upper bound b, {high}"
    if arguments.get("std", 0) < 0:
        return f"std is {arguments['std']}, below zero"
    if not 0 <= arguments.get("sparsity", 0) <= 1:
        return f"sparsity is {arguments['sparsity']}, not between 0 and 1"
    groups = arguments.get("groups", 1)
    if not isinstance(groups, int) or groups < 1 or (name == "dirac" and info.shape[0] % groups):
        return f"groups is {groups}, not a whole number that divides the size of the first axis, {info.shape[0]}"
    if name == "constant" and not _holds(info.dtype, arguments["val"]):
        return f"{brief_repr(arguments['val'], 40)} is not a value of {info.dtype}"
    return ""


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False


def _holds(dtype: str, value: float) -> bool:
    """Return whether a dtype can represent a value: integer and bool dtypes exactly, floating-point dtypes rounded."""
    kind, bits = DTYPES[dtype].kind, DTYPES[dtype].bits
    low, high = {
        "bool": (0, 1),
        "int": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        "uint": (0, 2**bits - 1),
    }.get(kind, (value, value))
    return kind in ("float", "complex") or (isfinite(value) and value == int(value) and low <= value <= high)


CONFIG = _Declared()
