"""Destinations that list their tensors: ``model: {tensors: {key: {shape, dtype, init}}, tied: [[key, key]]}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..planning.target import TargetSpec
from ..storage.yaml_text import InlineMapping
from ..tensors.dtypes import dtype_named
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, escape
from ._document import Document, check_fields
from ._inits import Init, drawn, read_init, suggested_init

__all__ = ["CONFIG", "declare"]


class _Declared:
    field = "tensors"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): the code of the initialisers is our own."""
        return ()

    def load(self, document: Document) -> TargetSpec:
        """Read the declaration; raises ConfigError for unknown or malformed fields, or initialisers that do not fit."""
        check_fields(document, "model", document.model, ("tensors", "tied"))
        rows = document.model["tensors"]
        if not isinstance(rows, dict) or not rows:
            raise document.fail("tensors is not a map from key to {shape, dtype, init}.")
        tensors: dict[str, TensorInfo] = {}
        inits: dict[str, Init] = {}
        for key, row in rows.items():
            tensors[str(key)] = _info(document, key, row)
            if row.get("init") is not None:
                inits[str(key)] = read_init(document, str(key), tensors[str(key)], row["init"])
        ties = _ties(document, tensors, inits)
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
    if not isinstance(key, str):
        raise document.fail(f"the tensor key {brief_repr(key, 80)} is not a string.", f'Write it in quotes: "{key}".')
    if not isinstance(row, dict) or "shape" not in row:
        raise document.fail(f"tensor {escape(key)} has no shape.")
    check_fields(document, f"tensor {key}", row, ("shape", "dtype", "init"))
    shape = row["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 64:
        raise document.fail(f"the shape of {escape(key)} is {brief_repr(shape, 80)}, not a list of sizes.")
    try:
        return TensorInfo(dtype_named(str(row.get("dtype", "float32"))), tuple(shape))
    except ConfigError as error:
        raise document.fail(f"{escape(key)}: {error}") from None


def _ties(document: Document, tensors: Mapping[str, TensorInfo], inits: dict[str, Init]) -> dict[str, str]:
    """Return the ties, each from a key to the first key of its list; adds the tied keys' initialisers to ``inits``."""
    ties: dict[str, str] = {}
    order = {key: i for i, key in enumerate(tensors)}
    groups = document.model.get("tied") or []
    if not isinstance(groups, list):
        raise document.fail(f"tied is {brief_repr(groups, 80)}, not a list of lists of keys.")
    seen: set[str] = set()
    for group in groups:
        if (
            not isinstance(group, list)
            or len(group) < 2
            or any(not isinstance(key, str) or key not in tensors for key in group)
        ):
            raise document.fail(f"tied has {brief_repr(group, 80)}, which is not a list of two or more of its keys.")
        twice = [key for key in group if key in seen or group.count(key) > 1]
        if twice:
            raise document.fail(f"tied has {escape(twice[0])} twice.", "Write all keys of one tensor in one list.")
        seen.update(group)
        first, *rest = sorted(group, key=order.__getitem__)
        for key in rest:
            if tensors[key] != tensors[first]:
                raise document.fail(f"{escape(key)} is tied to {escape(first)}, but differs in shape or dtype.")
            if key in inits and inits.setdefault(first, inits[key]) != inits[key]:
                raise document.fail(f"{escape(key)} is tied to {escape(first)}, but has another initialiser.")
            ties[key] = first
    return ties


def _draw(
    tensors: Mapping[str, TensorInfo], inits: Mapping[str, Init], keys: Iterable[str], seed: int
) -> Iterator[tuple[str, memoryview]]:
    import torch

    from .torch_module.seeding import derived_seed, drawing

    for key in keys:
        if key not in inits:
            raise ConfigError(f"the destination has no initialiser for {escape(key)}.")
        with drawing():
            torch.default_generator.manual_seed(derived_seed(seed, key, 0))
            data = drawn(tensors[key], inits[key])
        yield key, data


def declare(tensors: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> dict[str, Any]:
    """Return the model section that declares ``tensors``, each with the initialiser that its name and shape suggest.

    Weights of two or more dimensions get torch's default for linear and convolution layers; one-dimensional
    weights, scales and variances get ones; the rest zeros.
    """
    rows = {
        key: InlineMapping(shape=list(info.shape), dtype=info.dtype, init=suggested_init(key, info))
        for key, info in tensors.items()
    }
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
        rows[alias]["init"] = rows[owner]["init"]
    model: dict[str, Any] = {"tensors": rows}
    if groups:
        model["tied"] = list(groups.values())
    return model


CONFIG = _Declared()
