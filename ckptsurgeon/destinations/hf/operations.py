"""Translates conversions of transformers, which merge, split and transpose older tensors, into our operations.

A conversion is a chain of ``ConversionOps`` (transformers/core_model_loading.py) for all keys of one group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...tensors.info import TensorInfo
from .groups import ConversionGroup, IntermediateTensor, Naming, OperationChain, Row, UnknownConversion, Values

__all__ = ["rows_of"]


def rows_of(
    group: ConversionGroup, naming: Naming, config: Any, targets: Mapping[str, TensorInfo]
) -> tuple[list[Row], dict[str, str]]:
    """Return the operations for a group of source tensors, and the renamings of tensors that need no operation.

    ``naming`` has the key patterns of the source tensors and the function that writes destination keys. Raises
    UnknownConversion for a conversion that this module does not know.
    """
    names, write = naming
    chain = OperationChain(group, config, targets, write)
    values = {p: IntermediateTensor(name, group.shapes[p], len(group.found[p])) for p, name in names.items()}
    for operation in group.converter.operations:
        step = _STEPS.get(type(operation).__name__)
        if step is None:
            raise UnknownConversion(f"ckptsurgeon does not know transformers' operation {type(operation).__name__}")
        values = step(chain, operation, values)
    return chain.rows, chain.finals(values)


def _merge(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``MergeModulelist``, which stacks the tensors of each list into one tensor."""
    made: Values = {}
    for pattern, value in values.items():
        name, into = (pattern, chain.fresh()) if len(values) > 1 else (chain.target(values), "")
        into = into or (chain.names([name])[0] if _is_last(chain, operation) else chain.fresh())
        chain.rows.append({"stack": value.name, "into": into, "dim": operation.dim})
        shape = (*value.shape[: operation.dim], max(value.many, 1), *value.shape[operation.dim :])
        made[name] = IntermediateTensor(into, shape)
    return made


def _is_last(chain: OperationChain, operation: Any) -> bool:
    return operation is chain.group.converter.operations[-1]


def _concatenate(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``Concatenate``, which joins tensors in the order of the conversion's patterns.

    Raises UnknownConversion if the source has no tensor for one of the patterns.
    """
    lacking = [pattern for pattern in chain.group.converter.source_patterns if pattern not in values]
    if lacking:
        raise UnknownConversion(f"the source has no tensor that matches {lacking[0]}")
    parts = [values[pattern] for pattern in chain.group.converter.source_patterns]
    name = chain.target(values) if len(values) > 1 else next(iter(chain.group.converter.target_patterns))
    into = chain.names([name])[0] if _is_last(chain, operation) else chain.fresh()
    given = [part.name for part in parts]
    chain.rows.append({"concat": given if len(given) > 1 else given[0], "into": into, "dim": operation.dim})
    shape = list(parts[0].shape)
    shape[operation.dim] = sum(part.shape[operation.dim] * max(part.many, 1) for part in parts)
    return {name: IntermediateTensor(into, tuple(shape))}


def _chunk(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``Chunk``, which splits a tensor into equal parts.

    Raises UnknownConversion if only the model's configuration has the number of parts.
    """
    patterns = chain.group.converter.target_patterns
    if getattr(operation, "num_shards_attribute", None) is not None:
        raise UnknownConversion(
            "its conversion splits a tensor, and only the model's configuration says into how many parts"
        )
    return _split(chain, operation, values, patterns)


def _pieces(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``Split``, which splits a tensor into parts of the sizes that the destination has."""
    patterns = chain.group.converter.target_patterns
    outputs = chain.group.outputs()
    sizes = [chain.targets[name].shape[operation.dim] for name in outputs if name in chain.targets]
    return _split(chain, operation, values, patterns, sizes=sizes)


def _split(
    chain: OperationChain, operation: Any, values: Values, patterns: Sequence[str], *, sizes: Sequence[int] = ()
) -> Values:
    _, value = chain.only(values)
    into = chain.names(patterns)
    row: Row = {"split": value.name, "into": into, "dim": operation.dim}
    chain.rows.append({**row, "sizes": list(sizes)} if sizes else row)
    shapes = []
    for place in range(len(patterns)):
        shape = list(value.shape)
        shape[operation.dim] = sizes[place] if sizes else shape[operation.dim] // len(patterns)
        shapes.append(tuple(shape))
    return {p: IntermediateTensor(name, shape) for p, name, shape in zip(patterns, into, shapes, strict=True)}


def _transpose(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``Transpose``: swap two dimensions; with ``check_dims``, only if the destination has another shape."""
    pattern, value = chain.only(values)
    wanted = chain.targets.get(chain.group.target)
    if not (getattr(operation, "check_dims", False) and wanted is not None and wanted.shape == value.shape):
        chain.rows.append({"transpose": value.name, "dims": [operation.dim0, operation.dim1]})
        shape = list(value.shape)
        first, second = operation.dim0, operation.dim1
        shape[first], shape[second] = shape[second], shape[first]
        value = IntermediateTensor(value.name, tuple(shape))
    return {chain.target({pattern: value}): value}


def _interleave(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``Interleave`` (it puts rows with even indices before rows with odd indices), or its inverse."""
    pattern, value = chain.only(values)
    dim = operation.dim % len(value.shape)
    half = value.shape[dim] // 2
    pair = [2, half] if operation.inverse else [half, 2]
    _turn(chain, value, [*value.shape[:dim], *pair, *value.shape[dim + 1 :]], dim)
    return {chain.target({pattern: value}): value}


def _permute_for_rope(chain: OperationChain, operation: Any, values: Values) -> Values:
    """Translate ``PermuteForRope``, which applies ``Interleave`` to the rows of each attention head.

    Raises UnknownConversion if the installed transformers has another form of this operation.
    """
    if not hasattr(operation, "subconfig_key"):
        raise UnknownConversion("ckptsurgeon does not know PermuteForRope as it is in this version of transformers")
    config = getattr(chain.config, operation.subconfig_key or "", chain.config)
    heads = getattr(config, "num_attention_heads", 1)
    wanted = operation.permute_layer_names
    made: Values = {}
    for pattern, value in values.items():
        if wanted is None or any(name in pattern for name in wanted):
            half = value.shape[0] // heads // 2
            pair = [2, half] if operation.inverse else [half, 2]
            _turn(chain, value, [heads, *pair, *value.shape[1:]], 1)
        made[pattern if len(values) > 1 else chain.target(values)] = value
    return made


def _turn(chain: OperationChain, value: IntermediateTensor, shape: Sequence[int], dim: int) -> None:
    """Add operations: reshape a tensor to ``shape``, swap the dimensions ``dim`` and ``dim + 1``, reshape it back.

    Raises UnknownConversion if the tensor has another number of elements than ``shape``.
    """
    if math.prod(shape) != math.prod(value.shape):
        raise UnknownConversion("its shape cannot be split evenly")
    chain.rows += [
        {"reshape": value.name, "shape": list(shape)},
        {"transpose": value.name, "dims": [dim, dim + 1]},
        {"reshape": value.name, "shape": list(value.shape)},
    ]


_STEPS: Mapping[str, Callable[[OperationChain, Any, Values], Values]] = {
    "MergeModulelist": _merge,
    "Concatenate": _concatenate,
    "Chunk": _chunk,
    "Split": _pieces,
    "Transpose": _transpose,
    "Interleave": _interleave,
    "PermuteForRope": _permute_for_rope,
}
