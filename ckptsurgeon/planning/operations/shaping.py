"""The operations on tensors: split, stack, copy, transpose, reshape, slice, pad, scale, concatenate, add, average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from ...errors import PlanError
from ...tensors.composition import cut, exp_scale, filled, join, permute, reshape, shift, total
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, natural_key, number_in, shape_text
from ..keys.pattern import IN_RANGE, KeyPattern
from .combining import combined
from .operation import INDEX, Operation
from .resizing import MOST_PARTS, dimension, noised, of_heads, resized, scaled_part

__all__ = ["joined", "reshaped_by", "split_by"]

_CHOICE = re.compile(r"\{(\d+\.\.\d+|[^{},]+(?:,[^{},]+)+)\}")
"""A range such as {0..7}, or a list such as {q,k,v}, in a pattern."""
_NUMBER = re.compile(r"[0-9]+")


def split_by(operation: Operation, key: str, info: TensorInfo) -> dict[str, TensorInfo]:
    """Return {name: header of a new tensor}: the tensors that a split, unstack or copy makes from one tensor.

    Raises PlanError if the shape does not allow this, if there are too many parts, or if two parts get one name.
    """
    made: dict[str, TensorInfo] = {}
    if operation.verb == "copy":
        for rule in operation.rules:
            _put(made, rule.apply(key), info, key)
        return made
    dim = dimension(operation, operation.fields["dim"], key, len(info.shape))
    size = info.shape[dim]
    if operation.verb == "unstack":
        if size > MOST_PARTS:
            raise PlanError(
                f"{operation}: {escape(key)} would become {size} tensors, more than the limit of {MOST_PARTS}."
            )
        rest = (*info.shape[:dim], *info.shape[dim + 1 :])
        for index in range(size):
            _put(made, operation.rules[0].apply(key, {INDEX: str(index)}), reshape(cut(info, dim, index, 1), rest), key)
        return made
    groups, at = operation.fields["groups"], 0
    viewed, inner = _grouped(operation, key, info, dim)
    for rule, part in zip(operation.rules, _sizes(operation, key, viewed, inner), strict=True):
        shape = (*info.shape[:dim], groups * part, *info.shape[dim + 1 :])
        _put(made, rule.apply(key), reshape(cut(viewed, inner, at, part), shape), key)
        at += part
    return made


def _grouped(operation: Operation, key: str, info: TensorInfo, dim: int) -> tuple[TensorInfo, int]:
    """Return the tensor with ``dim`` reshaped to two dimensions (groups, rest), and the index of the second of these.

    Without groups, the tensor and its dimension stay as they are. Raises PlanError if the size of the dimension is not
    a multiple of the number of groups.
    """
    groups, size = operation.fields["groups"], info.shape[dim]
    if groups == 1:
        return info, dim
    if size % groups:
        raise PlanError(
            f"{operation}: dimension {dim} of {escape(key)} has size {size}, not a multiple of {groups} groups."
        )
    return reshape(info, (*info.shape[:dim], groups, size // groups, *info.shape[dim + 1 :])), dim + 1


def _put(made: dict[str, TensorInfo], name: str | None, info: TensorInfo, key: str) -> None:
    if name is None or name in made:
        raise PlanError(
            f"two tensors that are made from {escape(key)} would have the name {escape(name or '')}.",
            hint="Give each of them a different name.",
        )
    made[name] = info


def _sizes(operation: Operation, key: str, info: TensorInfo, dim: int) -> list[int]:
    """Return the size of each part of a split along the dimension.

    Raises PlanError if the sizes do not fit the dimension.
    """
    parts, size = len(operation.rules), info.shape[dim]
    sizes = list(operation.fields["sizes"])
    if not sizes and size % parts:
        hint = "Give the size of each part, as in sizes: [2, 1]."
        raise PlanError(
            f"{operation}: dimension {dim} of {escape(key)} has size {size}, which is not a multiple of {parts}.",
            hint=hint,
        )
    sizes = sizes or [size // parts] * parts
    if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != size:
        raise PlanError(
            f"{operation}: sizes {sizes} are {count(len(sizes), 'part')} with the sum {sum(sizes)}; "
            f"{escape(key)} needs {count(parts, 'part')} with the sum {size}, and no size below 0."
        )
    return sizes


def reshaped_by(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return the header of a tensor after an operation that keeps its name: transpose, reshape, halves and others."""
    if operation.verb == "scale":
        return scaled_part(operation, key, info)
    if operation.verb == "combine":
        return combined(operation, key, info)
    if operation.verb == "zero":
        return filled(info, info.shape, 0.0)
    if operation.verb == "noise":
        return noised(operation, key, info)
    if operation.verb == "shift":
        return shift(info, float(operation.fields["by"]))
    if operation.verb in ("halves", "pairs"):
        return _reordered(operation, key, info)
    if operation.verb in ("pool", "repeat"):
        return of_heads(operation, key, info)
    if operation.verb == "reshape":
        return reshape(info, _shape(operation, key, info))
    if operation.verb in ("slice", "take", "pad", "tile"):
        return resized(operation, key, info)
    return permute(info, _dims(operation, key, len(info.shape)))


def _dims(operation: Operation, key: str, dims: int) -> tuple[int, ...]:
    """Return the new order of the ``dims`` dimensions of a tensor after a transpose or permute.

    Raises PlanError if the operation does not list all dimensions, each once.
    """
    wanted = operation.fields["dims"]
    if operation.verb == "permute":
        order = tuple(dimension(operation, dim, key, dims) for dim in wanted)
        if sorted(order) != list(range(dims)):
            raise PlanError(
                f"{operation}: dims {list(wanted)} do not list each of the {dims} dimensions of {escape(key)} once."
            )
        return order
    if not wanted and dims != 2:
        raise PlanError(
            f"{operation}: {escape(key)} has {count(dims, 'dimension')}, not two.",
            hint="Select only the weight, or give two dimensions to swap, as in dims: [0, 1].",
        )
    first, second = (dimension(operation, dim, key, dims) for dim in wanted or (0, 1))
    order = tuple(range(dims))
    swapped = {first: second, second: first}
    return tuple(swapped.get(dim, dim) for dim in order)


def _reordered(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return queries or keys with their rows in another order, for the rotary embedding, which rotates pairs of rows.

    In each head, ``halves`` puts the first rows of all pairs before the second rows; ``pairs`` puts the two rows of
    each pair next to each other. Raises PlanError if a head would not have an even number of rows.
    """
    heads, rows = operation.fields["heads"], info.shape[0] if info.shape else 0
    if not rows or rows % (2 * heads):
        raise PlanError(
            f"{operation}: {escape(key)} has {count(rows, 'row')}, not a multiple of {2 * heads}: each of "
            f"{count(heads, 'head')} needs an even number of rows.",
            hint="Give the number of heads: num_attention_heads for queries, num_key_value_heads for keys.",
        )
    pairs = rows // heads // 2
    grid = (pairs, 2) if operation.verb == "halves" else (2, pairs)
    rest = info.shape[1:]
    viewed = permute(reshape(info, (heads, *grid, *rest)), (0, 2, 1, *range(3, 3 + len(rest))))
    return reshape(viewed, info.shape)


def _shape(operation: Operation, key: str, info: TensorInfo) -> tuple[int, ...]:
    """Return the shape of a tensor after a reshape; -1 in the operation is replaced by the remaining size.

    Raises PlanError if the number of elements differs.
    """
    shape = list(operation.fields["shape"])
    known = prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and known and info.numel % known == 0:
        shape[shape.index(-1)] = info.numel // known
    if min(shape, default=1) < 0 or prod(shape) != info.numel:
        raise PlanError(
            f"{operation}: the shape of {escape(key)} is {shape_text(info.shape)}, which does not fit "
            f"{shape_text(tuple(operation.fields['shape']))}.",
            hint="Give a shape with the same number of elements.",
        )
    return tuple(shape)


# Operations that make one tensor from several: concat, stack, add, mean and exp_scale.

Groups = dict[str, dict[int, list[str]]]
"""{new name: {index of a pattern: keys that it matches}}."""


def joined(
    operation: Operation, hits: Sequence[Sequence[str]], tensors: Mapping[str, TensorInfo]
) -> dict[tuple[str, ...], dict[str, TensorInfo]]:
    """Return {keys of inputs, in order: {name: header of the new tensor}} for a concat, stack, add, mean or exp_scale.

    If the operation has several patterns, each matches one input, and the inputs are in the order of the patterns. A
    single pattern matches all inputs, and the inputs are in the order of the numbers in their keys. ``hits`` has the
    keys that each pattern matched. Raises PlanError if inputs are missing, or do not fit each other or the operation.
    """
    groups: Groups = {}
    for index, keys in enumerate(hits):
        for key in keys:
            name = operation.rules[index].apply(key)
            assert name is not None
            groups.setdefault(name, {}).setdefault(index, []).append(key)
    made = {}
    for name, found in groups.items():
        keys = _ordered(operation, name, found)
        if len(set(keys)) != len(keys):
            raise PlanError(
                f"{operation}: two patterns match {escape(keys[0])}, so {escape(name)} would contain this tensor "
                "twice.",
                hint="Change the patterns so that no two of them match one key.",
            )
        made[tuple(keys)] = {name: _join(operation, name, keys, tensors)}
    _check_disjoint(operation, made)
    return made


def _ordered(operation: Operation, name: str, found: Mapping[int, list[str]]) -> list[str]:
    """Return the keys of the inputs of the new tensor ``name``, in order.

    ``found`` maps each pattern's index to the keys that it matches. Raises PlanError if an input is missing, or if
    several keys match a pattern that must match one.
    """
    if len(operation.patterns) == 1:
        keys = sorted(found[0], key=natural_key)
        _check_gaps(operation, name, keys)
        return keys
    for index, pattern in enumerate(operation.patterns):
        keys = found.get(index, [])
        if len(keys) != 1:
            why = f"{listing(keys)} all match" if keys else "nothing matches"
            raise PlanError(
                f"{operation}: for {escape(name)}, {why} {escape(pattern.text)}, which must match one tensor."
            )
    return [found[index][0] for index in range(len(operation.patterns))]


def _check_gaps(operation: Operation, name: str, keys: Sequence[str]) -> None:
    """Raise PlanError unless the keys differ in one captured number only, and these numbers have no gaps."""
    caught = [found.ordered for key in keys if (found := operation.patterns[0].captures(key)) is not None]
    varying = [values for values in zip(*caught, strict=True) if len(set(values)) > 1]
    if not varying and len({_NUMBER.sub("#", key) for key in keys}) == 1:  # the pattern has a range, as in {0..7}
        varying = [values for values in zip(*map(_NUMBER.findall, keys), strict=True) if len(set(values)) > 1]
        if len(varying) > 1:
            raise PlanError(
                f"{operation}: {len(keys)} tensors, whose names differ in {len(varying)} numbers, would become "
                f"{escape(name)}.",
                hint="Capture all of these numbers except one in the pattern, as in {n}, and use them in the new name.",
            )
    if len(varying) > 1:
        raise PlanError(
            f"{operation}: {len(keys)} tensors, whose names differ in {len(varying)} captures, "
            f"would become {escape(name)}.",
            hint="Use all captures of the pattern except one in the new name.",
        )
    _check_words(operation, name, keys)
    numbers = sorted(one for values in varying for text in values if (one := number_in(text)) is not None)
    if len(keys) > 1 and len(set(numbers)) < len(keys):
        raise PlanError(
            f"{operation}: it is not known in which order {listing(keys)} make the new tensor {escape(name)}.",
            hint="List a pattern for each tensor, in order. If their names have numbers, you can capture these, as in "
            "{n}.",
        )
    if numbers and numbers[-1] - numbers[0] >= len(numbers):
        present = set(numbers)
        missing = next(number for number in range(numbers[0], numbers[-1]) if number not in present)
        raise PlanError(
            f"{operation}: {escape(name)} lacks the tensor with number {missing} of {numbers[0]} to {numbers[-1]}."
        )


def _check_words(operation: Operation, name: str, keys: Sequence[str]) -> None:
    """Raise PlanError if a range or list in the pattern, such as {0..7}, has a word that none of the keys has."""
    text = operation.patterns[0].text
    choices = _CHOICE.findall(text)
    if text.startswith("re:") or len(choices) != 1:
        return
    for word in _lacking(text, choices[0], keys):
        raise PlanError(
            f"{operation}: for {escape(name)}, no tensor has {escape(word)} in the place of {{{escape(choices[0])}}}.",
            hint="Complete the model first, or change the pattern.",
        )


def _lacking(text: str, choice: str, keys: Sequence[str]) -> Iterator[str]:
    """Yield the words of a list or range in a pattern that no key has: 1 for ``a.{0..2}``, and the keys a.0 and a.2.

    ``text`` is the pattern, which matches all of ``keys``; ``choice`` is the text in its braces: ``0..2`` or ``q,k,v``.
    """
    first, dots, last = choice.partition("..")
    if dots:  # a range may have a thousand numbers: each key is matched once
        pattern = KeyPattern(text.replace(f"{{{choice}}}", f"{{{IN_RANGE}}}", 1))
        there = {int(found.named[IN_RANGE]) for key in keys if (found := pattern.captures(key)) is not None}
        yield from (str(number) for number in range(int(first), int(last) + 1) if number not in there)
        return
    for word in choice.split(","):
        pattern = KeyPattern(text.replace(f"{{{choice}}}", word, 1))
        if not any(pattern.captures(key) for key in keys):
            yield word


def _join(operation: Operation, name: str, keys: Sequence[str], tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    infos = [tensors[key] for key in keys]
    if operation.verb == "exp_scale":
        return _exp_scaled(operation, keys, infos)
    stacks, adds = operation.verb == "stack", operation.verb in ("add", "mean")
    dims = len(infos[0].shape) + stacks
    dim = -1 if adds else dimension(operation, operation.fields["dim"], keys[0], dims)
    if stacks:
        infos = [reshape(info, (*info.shape[:dim], 1, *info.shape[dim:])) for info in infos]
    for key, info in zip(keys, infos, strict=True):
        first = infos[0]
        if info.dtype != first.dtype:
            raise PlanError(
                f"{operation}: the dtypes differ: {escape(keys[0])} is {first.dtype}, {escape(key)} is {info.dtype}.",
                hint="Convert the tensors to one dtype first.",
            )
        if not _fit(first.shape, info.shape, dim):
            there, here = shape_text(tensors[keys[0]].shape), shape_text(tensors[key].shape)
            wanted = "must be equal" if adds or stacks else f"may differ only in dimension {dim}"
            raise PlanError(
                f"{operation}: the shapes of the parts of {escape(name)} {wanted}: {escape(keys[0])} is {there}, "
                f"{escape(key)} is {here}."
            )
    if adds:
        return total(infos, is_mean=operation.verb == "mean")
    groups = operation.fields.get("groups", 1)
    if groups == 1:
        return join(infos, dim)
    whole = join([_grouped(operation, key, info, dim)[0] for key, info in zip(keys, infos, strict=True)], dim + 1)
    rows = sum(info.shape[dim] for info in infos)
    return reshape(whole, (*infos[0].shape[:dim], rows, *infos[0].shape[dim + 1 :]))


def _exp_scaled(operation: Operation, keys: Sequence[str], infos: Sequence[TensorInfo]) -> TensorInfo:
    """Return the first tensor times e to the power of the second, which must have one element.

    Raises PlanError unless the second tensor has one element.
    """
    of, exponent = infos
    if exponent.numel != 1:
        raise PlanError(
            f"{operation}: the shape of {escape(keys[1])} is {shape_text(exponent.shape)}, but an exponent is one "
            "number."
        )
    return exp_scale(of, exponent)


def _fit(first: Sequence[int], other: Sequence[int], dim: int) -> bool:
    return len(first) == len(other) and all(
        a == b for d, (a, b) in enumerate(zip(first, other, strict=True)) if d != dim
    )


def _check_disjoint(operation: Operation, made: Mapping[tuple[str, ...], Mapping[str, TensorInfo]]) -> None:
    seen: dict[str, str] = {}
    for keys, outputs in made.items():
        name = next(iter(outputs))
        for key in keys:
            other = seen.setdefault(key, name)
            if other != name:
                raise PlanError(
                    f"{operation}: {escape(key)} would become a part of both {escape(other)} and {escape(name)}.",
                    hint="Change the patterns so that each key becomes a part of one tensor.",
                )
