"""Decodes integers packed along the inputs of each row: compressed-tensors' ``pack-quantized``, and MLX.

Codes have the shape (..., out, in * bits / 32), scales (..., out, groups). compressed-tensors stores codes and zero
points with an offset, and packs zero points along the outputs. MLX has a bias for each group instead of a zero point.
https://github.com/vllm-project/compressed-tensors, https://ml-explore.github.io/mlx
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from ...util.text import number_in
from ..composition import decoded, reshape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._bits import WORD, check_zeros, group_numbers, group_size, unpacked, words_of
from ._decoder import EXPONENTS, Request, UndecodableError, groups_of

__all__ = ["DECODER"]


class _Packed:
    """The decoder of packed integers.

    ``Decoded.facts`` has ``bits`` (of a code), ``group`` (how many inputs share a scale), and perhaps ``offset``
    (subtracted from codes).
    """

    families = ("packed", "MLX")

    def describe(self, asked: Request) -> TensorInfo:
        if "MLX" in asked.coded.method:
            return _mlx(asked)
        codes, scale = asked.parts.get(".weight_packed"), asked.parts.get(".weight_scale")
        if scale is None:
            raise UndecodableError("the scale (weight_scale) is missing")
        if codes is None or asked.coded.shape is None or not codes.numel:
            raise UndecodableError("the bit width of the codes is not known from the headers")
        digits = asked.coded.method.removeprefix("int").split()[0]
        bits = number_in(digits) or 0
        shape = _shape(asked)
        columns = shape[-1]
        if not 1 < bits <= 8:
            raise UndecodableError(f"the codes have {bits} bits, not 2 to 8")
        if shape[:-1] != codes.shape[:-1] or codes.shape[-1] not in _words(columns, bits):
            raise UndecodableError(f"the weight_shape {list(shape)} does not fit the codes {list(codes.shape)}")
        dense, padded = _words(columns, bits)
        said = _version(asked.settings.fields.get("version")) if dense == padded else None
        if WORD % bits and dense == padded and said is None:
            raise UndecodableError(
                f"the codes of {bits} bits may be packed in two ways: no setting says which version of "
                "compressed-tensors wrote them"
            )
        if codes.shape[-1] != dense or (WORD % bits and said is not None and said < DENSE):
            raise UndecodableError(
                f"the codes of {bits} bits are packed with gaps, as compressed-tensors did before 0.18"
            )
        rows = prod(codes.shape[:-1])
        if not scale.numel or scale.numel % rows:
            raise UndecodableError(f"there are {scale.numel:,} scales, not the same number for each of {rows:,} rows")
        scale = reshape(scale, (*codes.shape[:-1], scale.numel // rows))
        found = [("codes", codes), ("scale", scale)]
        if (zero := asked.parts.get(".weight_zero_point")) is not None:
            packed = -(-codes.shape[-2] * bits // WORD)
            check_zeros(zero, (*codes.shape[:-2], packed, scale.shape[-1]), ("int32",))
            found.append(("zero", zero))
        if (order := asked.parts.get(".weight_g_idx")) is not None and order.numel:
            if order.shape != (columns,):
                raise UndecodableError("the weight_g_idx does not have one value for each column")
            found.append(("order", order))
        is_ordered = any(role == "order" for role, _ in found)
        group = group_size(columns, scale.shape[-1], asked.settings, is_ordered=is_ordered)
        facts = (("bits", bits), ("group", group), ("offset", 1 << (bits - 1)))
        return decoded(shape, Decoded(tuple(found), "packed", facts))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        facts, (*lead, outputs, inputs) = dict(made.facts), box
        bits, stored = int(facts["bits"]), dict(made.parts)
        every = (0, stored["scale"].shape[-1])
        groups = every if "order" in stored else groups_of(inputs, int(facts["group"]))
        found: dict[str, Box] = {"codes": (*lead, outputs, words_of(inputs, bits)), "scale": (*lead, outputs, groups)}
        if "bias" in stored:
            found["bias"] = found["scale"]
        if "zero" in stored:
            found["zero"] = (*lead, words_of(outputs, bits), groups)
        if "order" in stored:
            found["order"] = (inputs,)
        return found

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        facts, (*_, outputs, inputs) = dict(made.facts), box
        bits = int(facts["bits"])
        group = group_numbers(made, inputs, arrays, dict(made.parts)["scale"].shape[-1], may_be_unset=True)
        values: Array = unpacked(arrays["codes"], inputs, bits).astype("<f4")
        scale = np.take(arrays["scale"].astype("<f4"), group, -1)
        if "bias" in arrays:
            values *= scale
            values += np.take(arrays["bias"].astype("<f4"), group, -1)
            return values
        if "zero" in arrays:
            zero = unpacked(np.swapaxes(arrays["zero"], -1, -2), outputs, bits)
            values -= np.take(np.swapaxes(zero, -1, -2).astype("<f4"), group, -1)
        else:
            values -= np.float32(facts["offset"])
        values *= scale
        return values


DENSE = (0, 18)
"""The first version of compressed-tensors that packs codes of 3, 5, 6 and 7 bits without gaps."""


def _version(stated: object) -> tuple[int, int] | None:
    """Return (major, minor) of the compressed-tensors version in the settings; None if they contain no version."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", stated) if isinstance(stated, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _words(columns: int, bits: int) -> tuple[int, int]:
    """Return two numbers of words for ``columns`` codes of ``bits`` bits: packed without gaps, and packed with gaps.

    With gaps, no code crosses the end of a word.
    """
    return -(-columns * bits // WORD), -(-columns // (WORD // bits))


def _shape(asked: Request) -> tuple[int, ...]:
    """Return the shape of a compressed-tensors weight: from its ``weight_shape`` or, without a valid one, the headers.

    Raises UndecodableError if ``weight_shape`` was cast to floats, and its values are not exactly the shape from the
    headers: they may have been rounded.
    """
    assert asked.coded.shape is not None
    stored = asked.parts.get(".weight_shape")
    data = asked.stored(".weight_shape")
    if stored is None or stored.dtype not in FLOATS:
        return _stored_shape(data) or asked.coded.shape
    if data and data != _as_floats(asked.coded.shape, stored.dtype):
        raise UndecodableError(f"the weight_shape is {stored.dtype}, not int64 or int32: these sizes may be rounded")
    return asked.coded.shape


FLOATS = {"float32": "f", "float64": "d", "float16": "e", "bfloat16": "f"}
"""The dtypes that a ``weight_shape`` may have after a cast of all tensors, and their letters in Python's ``struct``."""


def _as_floats(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the bytes of ``weight_shape`` after a cast to a float dtype; b"" if the cast changes a number."""
    try:
        found = struct.pack(f"<{len(shape)}{FLOATS[dtype]}", *shape)
    except OverflowError:
        return b""
    if struct.unpack(f"<{len(shape)}{FLOATS[dtype]}", found) != shape:
        return b""
    if dtype != "bfloat16":
        return found
    words = [found[at : at + 4] for at in range(0, len(found), 4)]
    return b"".join(word[2:] for word in words) if not any(word[:2] != bytes(2) for word in words) else b""


def _stored_shape(data: bytes) -> tuple[int, ...]:
    """Return the shape in the bytes of a ``weight_shape`` tensor (int64 or int32); () if it has no valid shape."""
    width = 8 if len(data) in (16, 24) else 4
    numbers = [int.from_bytes(data[at : at + width], "little", signed=True) for at in range(0, len(data), width)]
    return tuple(numbers) if len(numbers) > 1 and all(number > 0 for number in numbers) else ()


def _mlx(asked: Request) -> TensorInfo:
    codes, scale, bias = (asked.parts.get(end) for end in (".weight", ".scales", ".biases"))
    if codes is None or scale is None:
        raise UndecodableError("the tensor has no scales")
    if bias is None:
        return _floats_of_mlx(asked, codes, scale)
    if asked.coded.shape is None or bias.shape != scale.shape:
        raise UndecodableError(
            "the bit width of the codes is not known from the headers, or the biases do not fit the scales"
        )
    columns = asked.coded.shape[-1]
    facts = (("bits", codes.shape[-1] * WORD // columns), ("group", columns // scale.shape[-1]))
    return decoded(asked.coded.shape, Decoded((("codes", codes), ("scale", scale), ("bias", bias)), "packed", facts))


def _floats_of_mlx(asked: Request, codes: TensorInfo, scale: TensorInfo) -> TensorInfo:
    """Describe an MLX tensor without biases, whose codes are small floats, in the mode of the settings that fits it.

    Raises UndecodableError if no such mode is stated, or none fits.
    """
    stated = [one for one in asked.settings.stated.modes if one in _MODES]
    if not stated:
        raise UndecodableError(
            f"the tensor has no biases, and no setting names a mode without biases ({', '.join(_MODES)})"
        )
    raw = replace(codes, dtype="uint8", shape=(*codes.shape[:-1], codes.shape[-1] * 4))
    mode = next((one for one in stated if _fits(one, raw.shape, scale.shape)), "")
    if not mode:
        raise UndecodableError(f"the scales do not fit the codes in the mode {' or '.join(stated)}")
    size, dtype = _MODES[mode]
    columns, scale = scale.shape[-1] * size, replace(scale, dtype=dtype)
    shape = (*raw.shape[:-1], columns)
    if mode == "mxfp8":
        steps = [(f"step{dim}", size if dim == len(shape) - 1 else 1) for dim in range(len(shape))]
        return decoded(
            shape, Decoded((("codes", replace(raw, dtype=FLOAT8)), ("scale", scale)), "scaled", tuple(steps))
        )
    return decoded(shape, Decoded((("codes", raw), ("scale", scale)), "fp4", (("block", size), ("turned", 0))))


def _fits(mode: str, codes: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    """Return whether the shapes of codes (in bytes) and of scales fit a mode: at most one mode fits."""
    columns = scales[-1] * _MODES[mode][0]
    return codes == (*scales[:-1], columns if mode == "mxfp8" else columns // 2)


FLOAT8 = "float8_e4m3fn"
_MODES = {"mxfp4": (32, EXPONENTS[1]), "nvfp4": (16, FLOAT8), "mxfp8": (32, EXPONENTS[1])}
"""The modes of MLX with small floats: {mode: (how many codes share a scale, dtype of the scales)}.

The scales are stored as uint8.
"""


DECODER = _Packed()
