"""Decodes integers packed along the inputs of each row: compressed-tensors' ``pack-quantized``, and MLX.

Codes are (..., out, in * bits / 32), scales (..., out, groups). compressed-tensors stores codes and zero points with an
offset, and packs zero points along the outputs; MLX has a bias for each group instead.
https://github.com/vllm-project/compressed-tensors, https://ml-explore.github.io/mlx
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from ..composition import decoded, reshape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._bits import WORD, group_numbers, unpacked, words_of
from ._decoder import Request, UndecodableError, groups_of

__all__ = ["DECODER"]


class _Packed:
    """The facts: ``bits`` of a code, ``group`` (inputs that share a scale), ``offset`` (taken off the codes)."""

    families = ("packed", "MLX")

    def describe(self, asked: Request) -> TensorInfo:
        if "MLX" in asked.coded.method:
            return _mlx(asked)
        codes, scale = asked.parts.get(".weight_packed"), asked.parts.get(".weight_scale")
        if codes is None or scale is None or asked.coded.shape is None or not codes.numel:
            raise UndecodableError("its headers do not give its bits")
        digits = asked.coded.method.removeprefix("int").split()[0]
        bits = int(digits) if digits.isdigit() else 0
        shape = _stored_shape(asked.stored(".weight_shape")) or asked.coded.shape
        columns = shape[-1]
        if not 1 < bits <= 8 or shape[:-1] != codes.shape[:-1] or codes.shape[-1] != -(-columns * bits // WORD):
            raise UndecodableError(f"its weight_shape {list(shape)} does not fit its codes {list(codes.shape)}")
        rows = prod(codes.shape[:-1])
        if not scale.numel or scale.numel % rows:
            raise UndecodableError("its scales do not fit its codes")
        scale = reshape(scale, (*codes.shape[:-1], scale.numel // rows))
        group = -(-columns // scale.shape[-1])
        found = [("codes", codes), ("scale", scale)]
        if (zero := asked.parts.get(".weight_zero_point")) is not None:
            packed = -(-codes.shape[-2] * bits // WORD)
            if zero.dtype != "int32" or zero.shape != (*codes.shape[:-2], packed, scale.shape[-1]):
                raise UndecodableError("its zero points do not fit its scales")
            found.append(("zero", zero))
        if (order := asked.parts.get(".weight_g_idx")) is not None and order.numel:
            if order.shape != (columns,):
                raise UndecodableError("its weight_g_idx has another length than its rows")
            found.append(("order", order))
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
        group = group_numbers(inputs, int(facts["group"]), arrays)
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


def _stored_shape(data: bytes) -> tuple[int, ...]:
    """Return the shape in a ``weight_shape`` of int64 or int32; () if it is not known."""
    width = 8 if len(data) in (16, 24) else 4
    numbers = [int.from_bytes(data[at : at + width], "little", signed=True) for at in range(0, len(data), width)]
    return tuple(numbers) if len(numbers) > 1 and all(number > 0 for number in numbers) else ()


def _mlx(asked: Request) -> TensorInfo:
    codes, scale, bias = (asked.parts.get(end) for end in (".weight", ".scales", ".biases"))
    if asked.coded.shape is None or codes is None or scale is None or bias is None or bias.shape != scale.shape:
        raise UndecodableError("its headers do not give its bits, or it has no biases")
    columns = asked.coded.shape[-1]
    facts = (("bits", codes.shape[-1] * WORD // columns), ("group", columns // scale.shape[-1]))
    return decoded(asked.coded.shape, Decoded((("codes", codes), ("scale", scale), ("bias", bias)), "packed", facts))


DECODER = _Packed()
