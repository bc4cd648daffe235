"""Defines the interface of decoders, and decodes a part of a weight, reading only the stored values that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, TypeAlias, cast

import numpy as np

from ...util.registry import discover
from ...util.text import escape, listing
from ..dtypes import DTYPES
from ..info import Decoded, TensorInfo
from ..odd_scales.notes import OddScales
from ..ops.casts import widened
from ..ops.regions import Array, Box
from ..quantised.encoding import QuantisedTensor
from ..quantised.methods import IN_OTHER_SHARD, UNKNOWN, family
from ..quantised.packings import PACKING, other_packings
from ..quantised.parts import UNSCALED, WITHOUT_SCALES
from ..quantised.settings import QuantisationSettings, Settings, stated_by
from ._multiplied import multiplied
from ._odd_scales import add_size, are_usual, check_scales, find_odd_blocks, find_odd_codes, find_odd_scales
from ._tables import looked_up, may_be_looked_up, products

__all__ = [
    "EXPONENTS",
    "Decoder",
    "Parts",
    "Request",
    "StatedSettings",
    "UndecodableError",
    "as_exponents",
    "decode",
    "decode_rounded",
    "decoded_weight",
    "groups_of",
    "whole",
]

Read: TypeAlias = Callable[[TensorInfo, Box], Array]
"""A function that reads a part of a stored tensor, as an array of the numpy type that ``raw_dtype`` returns."""
Parts: TypeAlias = Mapping[str, TensorInfo]
"""The stored tensors of a quantised tensor, by the endings of their keys (for example ``.scales``)."""

EXPONENTS = ("uint8", "float8_e8m0fnu")
"""Dtypes of scales that are powers of two: both store only the exponent."""


class UndecodableError(Exception):
    """The error for a quantised tensor that no decoder can decode; its message is the reason.

    One such reason is that the stored tensors of the quantised tensor do not fit each other.
    """


class MissingPartError(UndecodableError):
    """A tensor that decodes the codes, such as their scale, is missing, so that the encoding was not recognised."""


class StatedSettings:
    """The ``quantization_config`` of a model folder (``fields``), parsed once for all tensors of the folder."""

    def __init__(self, fields: Settings) -> None:
        self.fields = fields
        self.searched = QuantisationSettings(fields)
        self.stated = stated_by(fields)


@dataclass(frozen=True)
class Request:
    """A quantised tensor, and everything that a decoder needs to describe its decoded weight.

    ``parts`` are its stored tensors, ``settings`` the ``quantization_config`` of its folder. ``stored`` is a function
    that reads a small stored tensor: it takes the ending of a key and returns the bytes of the tensor. It returns b""
    if there is no such tensor, or if the tensor cannot be read. ``are_equal`` is a function that compares the bytes of
    two stored tensors, given the endings of their keys; it returns None if they cannot be compared. ``metadata`` is the
    metadata of its file (strings by name, as in a safetensors header).
    """

    coded: QuantisedTensor
    parts: Parts
    settings: StatedSettings
    stored: Callable[[str], bytes] = lambda ending: b""
    metadata: Mapping[str, str] = field(default_factory=dict)
    are_equal: Callable[[str, str], bool | None] = lambda ending, other: None

    @property
    def codes(self) -> TensorInfo:
        """The stored tensor that contains the codes."""
        return next(self.parts[end] for end, key in self.coded.parts.items() if key == self.coded.codes)

    @property
    def own(self) -> QuantisationSettings:
        """The section of the settings with the name of this tensor's module, if there is one; else all settings."""
        return self.settings.searched.of(self.coded.name.removesuffix(".weight"))

    def matrix(self) -> tuple[int, int]:
        """Return the rows and columns of the weight; raises UndecodableError if the headers determine no matrix."""
        shape = self.coded.shape
        if shape is None or len(shape) != 2 or not all(shape):
            raise UndecodableError("the shape cannot be determined from the headers")
        return shape[0], shape[1]


class Decoder(Protocol):
    """The interface of a decoder; each public module of this folder has an instance, ``DECODER``."""

    families: tuple[str, ...]
    """The families of encodings that this decoder decodes."""

    def describe(self, asked: Request) -> TensorInfo:
        """Return the description of a decoded weight (float32); raises UndecodableError if it cannot be decoded."""
        ...

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        """Return, by role (such as ``scale``), the parts of stored tensors that are needed for the part ``box``."""
        ...

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        """Return the part ``box`` of the weight as float32.

        ``arrays`` contains, by role, the parts that ``boxes`` returned; floats have a type that numpy can compute with.
        """
        ...


@cache
def _decoders() -> dict[str, Decoder]:
    return cast("dict[str, Decoder]", discover("ckptsurgeon.tensors.decoders", "DECODER"))


@cache
def _decoder_of(named: str) -> Decoder | None:
    return next((one for one in _decoders().values() if named in one.families), None)


def decoded_weight(asked: Request) -> TensorInfo:
    """Return the description of a decoded weight (float32); raises UndecodableError if it cannot be decoded."""
    coded = asked.coded
    if coded.method.endswith(UNSCALED):
        raise MissingPartError(
            f"the quantised weight has {listing([*asked.parts], 9)}, but another tensor without which its codes cannot "
            "be decoded is missing"
        )
    if coded.method.endswith(WITHOUT_SCALES):
        raise MissingPartError("the scale that decodes the codes is missing")
    if not coded.codes:
        raise UndecodableError("the codes are missing, or have a dtype that codes never have")
    for why in _obstacles(asked):
        raise UndecodableError(why)
    if len(asked.parts) > 1 and not (asked.codes.shape and asked.codes.numel):  # torch stores scales with the codes
        raise UndecodableError(f"the codes have the shape {list(asked.codes.shape)}, which cannot be decoded")
    if empty := next((end for end, info in asked.parts.items() if "scale" in end and not info.numel), ""):
        raise UndecodableError(f"the stored tensor {empty.lstrip('._')} has no elements")
    decoder = _decoder_of(family(coded.method))
    if family(coded.method) == IN_OTHER_SHARD:
        raise UndecodableError("the scales are in another shard; name the model's folder instead of one file")
    if family(coded.method) == UNKNOWN:
        raise UndecodableError(
            f"the tensors ({listing([*asked.parts], 9)}) fit no encoding that ckpt knows; perhaps one is missing"
        )
    if decoder is None or coded.more_codes:
        raise UndecodableError(f"no decoder knows {coded.method}")
    made = decoder.describe(asked)
    assert isinstance(made.made, Decoded)
    for name, info in made.made.parts:
        kind = DTYPES[info.dtype].kind
        if info.opaque or (info.storage is None and info.made is None):
            raise UndecodableError(f"the {NAMES.get(name, name)} cannot be read")
        is_nested = name == "scale" and any(role == "nested_scale" for role, _ in made.made.parts)
        if kind not in KINDS.get(name, (kind,)) and not is_nested:
            raise UndecodableError(f"no decoder accepts {info.dtype} as the dtype of the {NAMES.get(name, name)}")
    told = made.made
    return TensorInfo(made.dtype, made.shape, made=Decoded(told.parts, told.encoding, told.facts, coded.name))


KINDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("scale", "bias", "nested_scale", "times", "over", "values", "nested_values", "shift"), ("float",)),
    "order": ("int", "uint"),
}
"""{role of a stored tensor: kinds of dtypes that it may have}.

With double quantisation, the ``scale`` of bitsandbytes is an exception: it contains codes, with a ``nested_scale``.
"""
NAMES: Mapping[str, str] = {
    "times": "global scale", "over": "global scale", "values": "quant_map", "nested_values": "nested_quant_map",
    "nested_scale": "nested_absmax", "shift": "zero points", "zero": "zero points", "order": "g_idx",
}  # fmt: skip
"""{role of a stored tensor: its name in messages}; other roles, such as ``scale``, are names themselves."""
ON_INPUTS = (".pre_quant_scale", ".prequant_scaling_factor", ".smooth_scale")
"""Endings of scales that are applied to the inputs of a layer: such a layer needs more than the decoded weight."""
AUTOROUND_ZERO = ".weight_zp"
"""The ending of AutoRound's zero points of 8-bit floats, which its own modules do not read."""
COMFY, PLAIN_COMFY = ".comfy_quant", ("float8_e4m3fn", "float8_e5m2")
"""The ending of ComfyUI's description of a weight's format, and the formats without rotations and tiles."""


def _obstacles(asked: Request) -> Iterator[str]:
    """Yield each reason why decoding would give wrong weights, such as zero points that are missing."""
    for end in ON_INPUTS:
        if end in asked.parts:
            yield f"the inputs of the layer are scaled too ({end[1:]}): the decoded weight alone would be wrong"
    if AUTOROUND_ZERO in asked.parts:
        yield f"no decoder knows the zero points ({AUTOROUND_ZERO[1:]})"
    if asked.settings.fields.get("transform_config"):
        yield "the tensor is stored in another basis than the one in which the layer computes (transform_config)"
    if COMFY in asked.parts and not any(f'"{one}"'.encode() in asked.stored(COMFY) for one in PLAIN_COMFY):
        yield "no decoder knows ComfyUI's own format of the codes (comfy_quant)"
    packing, kind = asked.settings.stated.packing, family(asked.coded.method)
    if fitting := other_packings(kind, packing):
        yield (
            f"{PACKING} {escape(packing or '')} does not describe the codes, which are {kind}'s: the field must be "
            f"{' or '.join(fitting)} (quantization_config)"
        )
    if _lacks_zero_points(asked):
        yield "the zero points are missing, and no setting says that the codes are symmetric"
    if "layers" in asked.settings.fields and family(asked.coded.method) not in ("fp8", "mxfp8"):
        yield "no decoder knows ComfyUI's own format of the codes"


def _lacks_zero_points(asked: Request) -> bool:
    """Return whether zero points are missing that the settings require.

    compressed-tensors stores zero points only if the settings say that codes are not symmetric. GPTQ and AWQ store zero
    points unless the settings say that codes are symmetric.
    """
    kind, stated = family(asked.coded.method), asked.settings.stated
    if kind == "GPTQ":
        return ".qzeros" not in asked.parts and stated.flags.get("sym") is not True
    if kind == "AWQ":
        return ".qzeros" not in asked.parts and stated.flags.get("zero_point") is not False
    return kind in ("packed", "int8") and ".weight_zero_point" not in asked.parts and set(stated.symmetric) == {False}


def decode(read: Read, info: TensorInfo, box: Box, odd: OddScales | None = None) -> Array:
    """Return the part ``box`` of a decoded weight, as float32; ``read`` returns a part of a stored tensor.

    If ``odd`` is given, the name of the weight is recorded in it for each kind of implausible scales that was found
    (see ``_odd_scales``). For a matrix, its size class is recorded, too.
    """
    made = info.made
    assert isinstance(made, Decoded)
    decoder, stored = _decoders()[made.encoding], dict(made.parts)
    boxes = decoder.boxes(made, box)
    found = _scaled_floats(read, info, boxes, box, "float32", odd)
    if found is not None:
        return found[0]
    arrays = _arrays(read, stored, boxes)
    check_scales(made, arrays)
    if odd is not None:
        find_odd_scales(made, arrays, box, odd, lambda some, part: decoder.values(made, some, part))
    with np.errstate(all="ignore"):  # infinite values are counted later, when the values are cast
        values: Array = np.ascontiguousarray(decoder.values(made, arrays, box), dtype="<f4")
    if odd is not None:
        if made.encoding == "gguf":
            find_odd_blocks(made, arrays["codes"], values, odd)
        add_size(info, values, "float32", odd, lambda: _without_scales(read, made, boxes, box))
    return values


def _arrays(read: Read, stored: Parts, boxes: Mapping[str, Box]) -> dict[str, Array]:
    return {name: widened(read(stored[name], one), stored[name].dtype) for name, one in boxes.items()}


def _without_scales(read: Read, made: Decoded, boxes: Mapping[str, Box], box: Box) -> Array | None:
    """Return a part of a weight decoded with scales of 1; None unless the weight is a product of codes and scales."""
    if "scale" not in boxes or {"bias", "nested_scale", "shift", "zero"} & boxes.keys():
        return None
    arrays = _arrays(read, dict(made.parts), boxes)  # read again: decoders may write into arrays
    return _decoders()[made.encoding].values(made, {**arrays, "scale": np.ones_like(arrays["scale"])}, box)


def decode_rounded(
    read: Read, info: TensorInfo, box: Box, dtype: str, odd: OddScales | None = None
) -> tuple[Array, bool] | None:
    """Return the part ``box`` of a decoded weight in a floating-point dtype, and whether all values are surely finite.

    The values are computed from the bits of the codes, or looked up in a table of all products of codes and scales.
    This is faster than ``decode`` followed by a cast, and the values are the same. Returns None if it is impossible, or
    no faster: then the caller has to use ``decode``.
    """
    made = info.made
    assert isinstance(made, Decoded)
    return _scaled_floats(read, info, _decoders()[made.encoding].boxes(made, box), box, dtype, odd)


def _scaled_floats(
    read: Read, info: TensorInfo, boxes: Mapping[str, Box], box: Box, dtype: str, odd: OddScales | None
) -> tuple[Array, bool] | None:
    """Return the part ``box`` of a weight, multiplied or looked up in a table of products; None if neither works.

    The second value is whether all weights are surely finite: it is true if they were multiplied, not looked up.
    """
    made = info.made
    assert isinstance(made, Decoded)
    if not may_be_looked_up(made, boxes):
        return None
    stored = dict(made.parts)
    scale = widened(read(stored["scale"], boxes["scale"]), stored["scale"].dtype)
    check_scales(made, {"scale": scale})
    kind = stored["codes"].dtype
    if not are_usual(scale, kind):
        return None
    steps = [int(dict(made.facts)[f"step{dim}"]) for dim in range(len(box))]
    codes = np.ascontiguousarray(read(stored["codes"], box))
    values = multiplied(codes, scale, box, steps, source=kind, dtype=dtype)
    are_finite = values is not None
    if values is None:
        table = products(kind, scale, dtype)
        if table is None:
            return None
        values = looked_up(codes, table, scale.shape, box, steps)
    if odd is not None:
        odd.add_signs(made.name, 0, scale.size)
        find_odd_codes(made, codes, scale, box, odd)
        add_size(info, values, dtype, odd)
    return values, are_finite


def as_exponents(info: TensorInfo) -> TensorInfo:
    """Return a uint8 scale, whose bytes are exponents, as float8_e8m0fnu; return any other scale unchanged."""
    return replace(info, dtype=EXPONENTS[1]) if info.dtype == EXPONENTS[0] else info


def whole(info: TensorInfo) -> Box:
    """Return the box that covers all of a tensor."""
    return tuple((0, size) for size in info.shape)


def groups_of(span: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the range of the groups, each of ``size`` elements, that the range ``span`` of elements overlaps."""
    return span[0] // size, -(-span[1] // size)
