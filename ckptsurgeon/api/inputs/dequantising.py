"""Decodes the quantised tensors of a checkpoint for operations, and encodes new weights in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...planning.quantised_error import UndecodableWeightError
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ...util.text import escape

if TYPE_CHECKING:
    from ...planning.operations.perform import DecodedWeight
    from ...tensors.decoders._decoder import Request, StatedSettings

__all__ = ["encoded_by", "stated_settings", "weights_of", "with_stated_shapes"]

SMALL = 1 << 20
"""The largest tensor, in bytes, that is read to describe a quantised weight, such as a ``quant_state``."""


def weights_of(checkpoint: Checkpoint) -> Callable[[str], DecodedWeight | None]:
    """Return a function that maps the key of a stored tensor to the decoded weight that this tensor belongs to.

    For example, the keys of codes and of their scales give the same weight. The function returns None for a tensor that
    is not quantised, and raises PlanError if the weight cannot be decoded.
    """
    return partial(_weight, checkpoint, {}, cache(partial(stated_settings, checkpoint)))


def stated_settings(checkpoint: Checkpoint) -> StatedSettings:
    """Return the ``quantization_config`` of a checkpoint's folder, parsed once for all tensors."""
    from ...tensors.decoders._decoder import StatedSettings

    return StatedSettings(checkpoint.quantisation)


def _weight(
    checkpoint: Checkpoint, known: dict[int, DecodedWeight], settings: Callable[[], StatedSettings], key: str
) -> DecodedWeight | None:
    coded = checkpoint.codes.by_key.get(key)
    if coded is None:
        return None
    weight = known.get(id(coded))
    if weight is None:
        weight = known[id(coded)] = _decoded(checkpoint, coded, settings())
    return weight


def _decoded(checkpoint: Checkpoint, coded: QuantisedTensor, settings: StatedSettings) -> DecodedWeight:
    from ...planning.operations.perform import DecodedWeight
    from ...tensors.decoders._decoder import MissingPartError, UndecodableError, decoded_weight

    try:
        return DecodedWeight(coded.name, decoded_weight(_request(checkpoint, coded, settings)), coded.keys)
    except UndecodableError as error:
        is_copied = not (coded.codes and checkpoint[coded.codes].opaque)
        is_missing = isinstance(error, MissingPartError)
        advice = "dequantise the model with the package that quantised it"
        advice = f"Copy it from the quantised model, or {advice}" if is_missing else f"D{advice[1:]}"
        raise UndecodableWeightError(
            f"the tensor {escape(coded.name)} of {escape(checkpoint.path)} is quantised ({escape(coded.method)}) "
            f"and cannot be decoded: {escape(str(error))}.",
            hint=f"{advice}{', or copy the tensor as it is' * is_copied}.",
            details=list(coded.keys),
        ) from None


def _request(checkpoint: Checkpoint, coded: QuantisedTensor, settings: StatedSettings) -> Request:
    from ...tensors.decoders._decoder import Request

    parts = {end: checkpoint[part] for end, part in coded.parts.items()}
    stored, are_equal = partial(_stored, checkpoint, coded), partial(_are_equal, checkpoint, parts)
    return Request(coded, parts, settings, stored, checkpoint.metadata, are_equal)


def encoded_by(checkpoint: Checkpoint) -> Callable[[QuantisedTensor, TensorInfo], Mapping[str, TensorInfo]]:
    """Return a function that encodes a new weight in the same way as a quantised tensor of the checkpoint.

    The arguments of the function are the quantised tensor and the new weight. It returns the tensors to store, such as
    codes and scales, by the endings of their keys: ``{"qweight": …, "scales": …}`` for GPTQ. It raises
    ``UnencodableError`` if no encoder can encode the weight in this way.
    """
    settings = cache(partial(stated_settings, checkpoint))

    def parts(coded: QuantisedTensor, weight: TensorInfo) -> Mapping[str, TensorInfo]:
        from ...tensors.encoders._like import encoded_like

        return encoded_like(weight, _request(checkpoint, coded, settings()))

    return parts


def with_stated_shapes(checkpoint: Checkpoint, codes: QuantisedTensors) -> QuantisedTensors:
    """Return ``codes`` with the shapes of weights, as recorded in the ``quant_state`` of bitsandbytes (4 bits).

    A shape that does not fit the number of codes is left out.
    """
    states = checkpoint.quant_states if any(one.shape is None and one.parameters for one in codes.tensors) else {}
    unknown = [one for one in codes.tensors if one.shape is None and one.name in states]
    found = {one.name: _fitting_shape(one, states[one.name].get("shape")) for one in unknown}
    shaped = {name: shape for name, shape in found.items() if shape is not None}
    if not shaped:
        return codes
    made = {one.name: replace(one, shape=shaped[one.name]) for one in codes.tensors if one.name in shaped}
    return QuantisedTensors(
        tuple(made.get(one.name, one) for one in codes.tensors),
        {key: made.get(one.name, one) for key, one in codes.by_key.items()},
    )


def _fitting_shape(coded: QuantisedTensor, shape: object) -> tuple[int, ...] | None:
    """Return ``shape`` as a tuple if it is a valid shape that fits the number of codes; else None."""
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 40 for size in shape[:8]):
        return None
    number = math.prod(shape[:8])
    is_fitting = len(shape) <= 8 and coded.parameters == number + number % 2
    return tuple(shape) if is_fitting else None


def _stored(checkpoint: Checkpoint, coded: QuantisedTensor, ending: str) -> bytes:
    """Return the bytes of a tensor, such as ``g_idx``, that is stored as part of a quantised weight.

    ``ending`` is the ending of the stored tensor's key. Returns b"" if there is no such tensor, or if it is large.
    """
    info = checkpoint[coded.parts[ending]] if ending in coded.parts else None
    if info is None or info.storage is None or not info.is_plain or info.nbytes > SMALL:
        return b""
    return bytes(checkpoint.open_files()[info.storage.file].read(info.storage.offset + info.offset, info.nbytes))


def _are_equal(checkpoint: Checkpoint, parts: Mapping[str, TensorInfo], ending: str, other: str) -> bool | None:
    """Return whether two stored tensors of a quantised weight have the same bytes; None if they cannot be compared.

    ``parts`` are its stored tensors by the endings of their keys. Large tensors are read in pieces of ``SMALL`` bytes.
    """
    infos = parts[ending], parts[other]
    if infos[0].nbytes != infos[1].nbytes:
        return False
    places = [(info.storage, info.offset) for info in infos if info.storage is not None and info.is_plain]
    if len(places) < 2:
        return None
    files = checkpoint.open_files()
    for at in range(0, infos[0].nbytes, SMALL):
        size = min(SMALL, infos[0].nbytes - at)
        one, two = (files[place.file].read(place.offset + offset + at, size) for place, offset in places)
        if one != two:
            return False
    return True
