"""Destinations nobody can import: ``model: {tensors: {key: {shape, dtype, init}}, tied: [[key, key]]}``.

``init`` names a function of ``torch.nn.init`` without its underscore, alone or with its arguments
(``{normal: {std: 0.02}}``), or is a number, for a constant.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..tensors import DTYPES, TargetSpec, TensorInfo, dtype_named
from ..text import escape
from ._document import Document, check_fields
from ._yaml import Row

__all__ = ["CONFIG", "declare"]

_AT_LEAST_2 = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal")
_ARGUMENTS = {
    "uniform": ("a", "b"), "normal": ("mean", "std"), "trunc_normal": ("mean", "std", "a", "b"),
    "constant": ("val",), "ones": (), "zeros": (), "eye": (), "dirac": ("groups",), "arange": (),
    "xavier_uniform": ("gain",), "xavier_normal": ("gain",),
    "kaiming_uniform": ("a", "mode", "nonlinearity"), "kaiming_normal": ("a", "mode", "nonlinearity"),
    "orthogonal": ("gain",), "sparse": ("sparsity", "std"),
}  # fmt: skip
"""The initialisers and their arguments, as ``torch.nn.init`` has them; ``arange`` counts (position ids)."""

TORCH_SLOPE = 2.23607
"""The square root of 5: what ``reset_parameters`` of linear and convolution layers gives as ``a``."""

_EXACT = ("constant", "ones", "zeros", "eye", "arange")
"""Initialisers that integers and truth values can have."""


@dataclass(frozen=True)
class _Init:
    name: str
    arguments: Mapping[str, Any]


class _Declared:
    field = "tensors"

    def load(self, document: Document) -> TargetSpec:
        """Read the declaration; raises ConfigError for what is unknown, malformed or cannot be initialised so."""
        check_fields(document, "model", document.model, ("tensors", "tied"))
        rows = document.model["tensors"]
        if not isinstance(rows, dict) or not rows:
            raise document.fail("tensors is not a map from key to {shape, dtype, init}.")
        tensors: dict[str, TensorInfo] = {}
        inits: dict[str, _Init] = {}
        for key, row in rows.items():
            tensors[str(key)] = _info(document, key, row)
            if row.get("init") is not None:
                inits[str(key)] = _init(document, str(key), tensors[str(key)], row["init"])
        ties = _ties(document, tensors)
        return TargetSpec(
            kind="tensors",
            name=document.name,
            tensors=tensors,
            ties=ties,
            initial=lambda keys, seed: _draw(tensors, inits, keys, seed),
            undrawable=frozenset(tensors.keys() - inits.keys() - ties.keys()),
            config=document.path,
        )


def _info(document: Document, key: Any, row: Any) -> TensorInfo:
    if not isinstance(key, str) or not isinstance(row, dict) or "shape" not in row:
        raise document.fail(f"tensor {key!r:.80} has no shape.")
    check_fields(document, f"tensor {key}", row, ("shape", "dtype", "init"))
    shape = row["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 64:
        raise document.fail(f"the shape of {escape(key)} is {shape!r:.80}, not a list of sizes.")
    try:
        return TensorInfo(dtype_named(str(row.get("dtype", "float32"))), tuple(shape))
    except ConfigError as error:
        raise document.fail(f"{escape(key)}: {error}") from None


def _init(document: Document, key: str, info: TensorInfo, spec: Any) -> _Init:
    """Parse one initialiser and check that it fits the tensor."""
    if isinstance(spec, (int, float)):
        spec = {"constant": {"val": spec}}
    name, arguments = next(iter(spec.items())) if isinstance(spec, dict) and len(spec) == 1 else (spec, {})
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise document.fail(f"{escape(key)} has no initialiser {spec!r:.60}.", f"There are {', '.join(_ARGUMENTS)}.")
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise document.fail(f"the arguments of {name} of {escape(key)} are not a map.")
    check_fields(document, f"{name} of {key}", arguments, _ARGUMENTS[name])
    _check_fit(document, key, info, name)
    needed = {"constant": "val", "sparse": "sparsity"}.get(name)
    if needed and needed not in arguments:
        raise document.fail(f"{name} of {escape(key)} needs {needed}.")
    return _Init(name, arguments)


def _check_fit(document: Document, key: str, info: TensorInfo, name: str) -> None:
    dims = len(info.shape)
    wanted = {"eye": dims == 2, "sparse": dims == 2, "dirac": 3 <= dims <= 5, "arange": dims >= 1}.get(name, True)
    if not wanted or (name in _AT_LEAST_2 and dims < 2):
        raise document.fail(f"{name} cannot initialise {escape(key)}, which has {dims} dimensions.")
    if not DTYPES[info.dtype].is_floating and name not in _EXACT:
        raise document.fail(f"{name} cannot initialise {escape(key)}, which is {info.dtype}.")


def _ties(document: Document, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    ties: dict[str, str] = {}
    order = {key: i for i, key in enumerate(tensors)}
    for group in document.model.get("tied") or []:
        if not isinstance(group, list) or len(group) < 2 or any(key not in tensors for key in group):
            raise document.fail(f"tied has {group!r:.80}, which is not a list of two or more of its keys.")
        first, *rest = sorted(group, key=order.__getitem__)
        for key in rest:
            if tensors[key] != tensors[first]:
                raise document.fail(f"{escape(key)} is tied to {escape(first)} and differs from it.")
            ties[key] = first
    return ties


def _draw(
    tensors: Mapping[str, TensorInfo], inits: Mapping[str, _Init], keys: Iterable[str], seed: int
) -> Iterator[tuple[str, memoryview]]:
    import torch

    from ._seeding import derived_seed, drawing

    for key in keys:
        if key not in inits:
            raise ConfigError(f"the destination does not say how {escape(key)} is initialised.")
        info, init = tensors[key], inits[key]
        with drawing():
            torch.default_generator.manual_seed(derived_seed(seed, key, 0))
            tensor = torch.empty(info.shape, dtype=getattr(torch, info.dtype))
            _fill(tensor, init)
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
        del tensor
        yield key, data


def _fill(tensor: Any, init: _Init) -> None:
    import torch

    if tensor.numel() == 0:
        return
    if init.name == "arange":
        tensor.copy_(torch.arange(tensor.shape[-1]).expand(tensor.shape))
        return
    function = getattr(torch.nn.init, f"{init.name}_")
    try:
        inspect.signature(function).bind(tensor, **init.arguments)
        function(tensor, **init.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{init.name} with {dict(init.arguments)}: {escape(str(error))}.") from error


def declare(tensors: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> dict[str, Any]:
    """Return the model section that declares ``tensors``, each with the initialiser its name and shape suggest.

    Weights of two or more dimensions get torch's default for linear and convolution layers; one-dimensional
    weights, scales and variances get ones; the rest zeros.
    """
    rows = {
        key: Row(shape=list(info.shape), dtype=info.dtype, init=_suggested(key, info)) for key, info in tensors.items()
    }
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
    model: dict[str, Any] = {"tensors": rows}
    if groups:
        model["tied"] = list(groups.values())
    return model


def _suggested(key: str, info: TensorInfo) -> str | dict[str, Any]:
    leaf = key.rpartition(".")[2]
    if DTYPES[info.dtype].kind != "float":
        return "arange" if leaf == "position_ids" and len(info.shape) >= 1 else "zeros"
    if len(info.shape) >= 2:
        return {"kaiming_uniform": {"a": TORCH_SLOPE}}
    return "ones" if leaf in ("weight", "gamma", "scale", "running_var") or leaf.endswith("_g") else "zeros"


CONFIG = _Declared()
