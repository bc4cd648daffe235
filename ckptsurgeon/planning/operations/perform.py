"""Applies operations to headers: determines the resulting tensors, and how each of them is made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from ...errors import FormatError, PlanError
from ...tensors.composition import given
from ...tensors.dtypes import DTYPES
from ...tensors.info import Encoded, TensorInfo
from ...tensors.torch_quantisers import is_pickled, notes_on_activations
from ...util.text import escape
from ..keys.pattern_hints import notes_on_hits, notes_on_ranges
from ..keys.renaming import KeyMatcher
from ..plan.files import Derivation
from ..quantised_error import QuantisedError
from .blocks import in_blocks
from .operation import JOINING, Operation
from .quantising import quantised
from .shaping import joined, reshaped_by, split_by

__all__ = ["DecodedWeight", "DerivedSource", "Weights", "perform"]

Made: TypeAlias = dict[tuple[str, ...], dict[str, TensorInfo]]
"""{keys of inputs: {name of a new tensor: tensor that is made from these inputs}}."""


class DecodedWeight(NamedTuple):
    """The weight that a quantised tensor encodes: its key, the header of the decoded tensor, the keys of its parts."""

    name: str
    info: TensorInfo
    keys: tuple[str, ...]


Weights: TypeAlias = Callable[[str], DecodedWeight | None]
"""A function that maps the key of a stored tensor to the quantised weight that it is a part of; None if it is plain."""

TENSORS = 1_000_000
"""The largest number of tensors in a source after its operations; a source that is read has the same limit."""
DEPTH = 64
"""The largest number of operations that follow each other on one tensor."""


@dataclass
class DerivedSource:
    """A source after its operations: its tensors, and, for each new tensor, how it was made (``by``).

    ``rows`` are the operations that matched a tensor of the source, as users write them; ``notes`` are for the user.
    """

    tensors: dict[str, TensorInfo]
    by: dict[str, Derivation] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def perform(
    sources: Sequence[Mapping[str, TensorInfo]],
    operations: Sequence[Operation],
    weights: Sequence[Weights] = (),
    after: Sequence[DerivedSource] = (),
) -> list[DerivedSource]:
    """Return the sources after all operations; each operation is applied to all sources that have matching tensors.

    The operations are applied in order, each to the results of the operation before. For the operation dequantize,
    ``weights`` has a function for each source that finds its quantised weights. The tensor of an operation ``constant``
    is added to the first source. If operations were performed before, ``after`` has their results; ``operations`` are
    applied to these.

    Raises PatternError for an operation that matches nothing; PlanError if shapes do not allow an operation, or two
    tensors get the same name; FormatError if the values of a tensor are not plain bytes.
    """
    before = after or [DerivedSource(dict(source)) for source in sources]
    results = [replace(one, tensors=dict(one.tensors), by=dict(one.by)) for one in before]
    for operation in operations:
        if operation.verb == "constant":
            _add(results[0], operation)
            results[0].rows = (*results[0].rows, operation.row)
            continue
        matcher = KeyMatcher(operation.patterns)
        found = [matcher.hits(result.tensors) for result in results]
        keys = [key for one in results for key in one.tensors]
        numbers = [sum(map(len, hits)) for hits in zip(*found, strict=True)]
        flags = [(str(operation), pattern) for pattern in operation.patterns]
        notes = notes_on_hits(flags, numbers, keys, "source")
        notes += [note for one in flags for note in notes_on_ranges(*one, keys)]
        if operation.verb == "dequantize":
            found = [[_coded(hits[0], give)] for hits, give in zip(found, weights, strict=True)]
            if not any(keys for hits in found for keys in hits):
                raise PlanError(f"{operation}: no tensor that matches is quantised.", hint="Leave dequantize out.")
        for number, (result, hits) in enumerate(zip(results, found, strict=True)):
            if any(hits):
                if operation.verb == "dequantize":
                    made = _decoded(hits[0], result, sources[number], operation, weights[number])
                elif operation.verb == "blocks":
                    made = _blocked(result, operation, hits[0])
                elif operation.verb == "quantize":
                    made = quantised(operation, [key for keys in hits for key in keys], result.tensors)
                else:
                    made = _operated(result.tensors, operation, hits)
                _put_in_place(result, operation, made)
                notes += notes_on_activations(result.tensors) if operation.verb == "dequantize" else []
                result.rows = (*result.rows, operation.row)
                result.notes, notes = (*result.notes, *notes), []
    return results


def _add(result: DerivedSource, operation: Operation) -> None:
    """Add the new tensor of ``operation``, which has the verb ``constant``, to the end of ``result``.

    Raises PlanError if another tensor has the name of the new tensor.
    """
    if operation.name in result.tensors:
        raise PlanError(f"{operation}: another tensor has this name.", hint="Give one of the two tensors another name.")
    _put(result, operation.name, given(operation.fields["values"]), operation, of=operation.name)
    result.by[operation.name] = Derivation(str(operation), (), 1)


def _coded(hits: Sequence[str], weights: Weights) -> list[str]:
    """Return the keys in ``hits`` that are stored parts of quantised tensors, such as codes and scales."""
    return [key for key in hits if weights(key) is not None]


def _decoded(
    keys: Sequence[str],
    result: DerivedSource,
    source: Mapping[str, TensorInfo],
    operation: Operation,
    weights: Weights,
) -> Made:
    """Return {keys of all parts: {name: decoded weight}} for the quantised tensors that have a part in ``keys``.

    Raises PlanError if an earlier operation has changed a part.
    """
    made: Made = {}
    for weight in filter(None, map(weights, keys)):
        if weight.keys in made:  # another part led to the same weight
            continue
        for key in weight.keys:
            if result.tensors.get(key) is not source[key]:
                raise PlanError(
                    f"{operation}: an earlier operation has changed {escape(key)}, a part of {escape(weight.name)}.",
                    hint="Write dequantize before the other operations.",
                )
        made[weight.keys] = {weight.name: weight.info}
    return made


def _blocked(result: DerivedSource, operation: Operation, keys: Sequence[str]) -> Made:
    """Return the matrices in ``keys`` rounded to a type of GGUF; notes are added to ``result``."""
    found, notes = in_blocks(operation, keys, result.tensors)
    result.notes += tuple(notes)
    return _once({(key,): {key: info} for key, info in found.items()}, result.tensors)


def _operated(tensors: Mapping[str, TensorInfo], operation: Operation, hits: Sequence[Sequence[str]]) -> Made:
    """Return the tensors that an operation on plain tensors makes; ``hits`` has the keys that each pattern matched.

    Raises the errors of ``_check_operable`` for each matched tensor.
    """
    for key in (key for keys in hits for key in keys):
        _check_operable(key, tensors[key], operation)
    return _made(tensors, operation, hits)


def _put_in_place(result: DerivedSource, operation: Operation, made: Made) -> None:
    """Replace the inputs of an operation in ``result`` by the tensors that it makes.

    New tensors get the position of the first of their inputs.
    """
    first = {inputs[0]: inputs for inputs in made}
    consumed = {key for inputs in made for key in inputs}
    said = str(operation)
    after = DerivedSource({})
    for key, info in result.tensors.items():
        if key not in consumed:
            _put(after, key, info, operation, of=key)
            if key in result.by:
                after.by[key] = result.by[key]
        elif key in first:
            by = _made_by(result, said, first[key], is_copy=operation.verb == "copy")
            for name, one in made[first[key]].items():
                _put(after, name, one, operation, of=next(iter(by.of), name))
                after.by[name] = by
    result.tensors, result.by = after.tensors, after.by


def _made(tensors: Mapping[str, TensorInfo], operation: Operation, hits: Sequence[Sequence[str]]) -> Made:
    """Return {keys of inputs: {name: header of a tensor that is made from them}} for an operation.

    ``hits`` has the keys that each pattern matched. If several inputs are tied to each other, the tensors that are made
    from them in the same way are tied too. Raises PlanError if there are too many tensors, or if shapes do not allow
    the operation.
    """
    if operation.verb in JOINING:
        return _once(joined(operation, hits, tensors), tensors)
    made: Made = {}
    number = 0
    for key in hits[0]:
        info = tensors[key]
        made[key,] = split_by(operation, key, info) if operation.rules else {key: reshaped_by(operation, key, info)}
        number += len(made[key,])
        if number > TENSORS:
            raise PlanError(f"{operation} makes more than {TENSORS} tensors.")
    return _once(made, tensors)


def _once(made: Made, tensors: Mapping[str, TensorInfo]) -> Made:
    """Return the new tensors; tensors that are made from the same tied inputs are tied to each other."""
    seen: dict[tuple[Hashable, ...], list[TensorInfo]] = {}
    for inputs, outputs in made.items():
        places = tuple(tensors[key].place for key in inputs)
        if None not in places:
            same = seen.setdefault(places, list(outputs.values()))
            made[inputs] = dict(zip(outputs, same, strict=True))
    return made


def _made_by(result: DerivedSource, operation: str, inputs: tuple[str, ...], *, is_copy: bool) -> Derivation:
    """Return how operations made a tensor: ``operation`` from ``inputs``, which may also be made by operations.

    For a copy (``is_copy``), the result names the operation that made its input, if there is one. Raises PlanError if
    more than ``DEPTH`` operations follow each other.
    """
    if result.by.keys().isdisjoint(inputs):
        return Derivation(operation, tuple(dict.fromkeys(inputs)), 1)
    before = [result.by.get(key, Derivation("", (key,), 0)) for key in inputs]
    depth = 1 + max(one.depth for one in before)
    if depth > DEPTH:
        raise PlanError(f"{operation}: more than {DEPTH} operations follow each other on {escape(inputs[0])}.")
    last = before[0].operation if is_copy else operation
    return Derivation(last, tuple(dict.fromkeys(key for one in before for key in one.of)), depth)


def _put(after: DerivedSource, key: str, info: TensorInfo, operation: Operation, *, of: str) -> None:
    if key in after.tensors:
        other = next(iter(after.by[key].of), key) if key in after.by else key
        raise PlanError(
            f"{operation}: {escape(other)} and {escape(of)} both become {escape(key)}.",
            hint="Give one of the two tensors another name.",
        )
    if len(after.tensors) >= TENSORS:
        raise PlanError(f"{operation} makes more than {TENSORS} tensors.")
    after.tensors[key] = info


def _check_operable(key: str, info: TensorInfo, operation: Operation) -> None:
    if is_pickled(info):
        raise QuantisedError(
            f"{operation}: {escape(key)} is quantised, so the operation would use its codes as numbers.",
            hint="Decode the tensor in an earlier operation: - dequantize: KEY.",
        )
    if info.opaque:
        raise FormatError(f"{operation}: {escape(key)} cannot be read: {info.opaque}.", rule="opaque")
    if isinstance(info.made, Encoded):
        raise PlanError(
            f"{operation}: {escape(key)} is a part of a tensor that an earlier operation has quantised.",
            hint="Write quantize after the other operations.",
        )
    dtype = DTYPES[info.dtype]
    if dtype.is_packed:
        raise PlanError(
            f"{operation}: {escape(key)} is {info.dtype}, which packs several numbers in a byte: no operation can "
            "change it.",
            hint="Decode the weights with ckpt convert --dequantize." if dtype.block else "",
        )
    if operation.verb in ("scale", "exp_scale", "add", "mean", "pool", "combine") and not dtype.is_floating:
        raise PlanError(
            f"{operation}: {escape(key)} is {info.dtype}; only floating-point tensors can be scaled, added or averaged."
        )
    if info.dtype == "float8_e8m0fnu" and operation.verb in ("zero", "scale", "exp_scale", "noise", "combine"):
        raise PlanError(
            f"{operation}: {escape(key)} is {info.dtype}, which has no zero: its numbers are powers of two."
        )
    if operation.verb == "pad" and dtype.kind not in ("float", "complex") and operation.fields["value"]:
        raise PlanError(f"{operation}: {escape(key)} is {info.dtype}, which can only be padded with 0.")
    done = {"shift": "shifted", "noise": "given noise", "exp_scale": "scaled by an exponent"}.get(operation.verb)
    if done is not None and dtype.kind != "float":
        raise PlanError(f"{operation}: {escape(key)} is {info.dtype}; only real floating-point tensors can be {done}.")
