"""Decodes 4-bit floats (e2m1), two in a byte, in blocks with a scale: mxfp4 and nvfp4.

The lower half of a byte comes first. mxfp4 has an exponent for each block of 32 (OCP Microscaling Formats v1.0). nvfp4
has an 8-bit float for each block of 16, and a global scale: ModelOpt multiplies by it, compressed-tensors divides by
it. gpt-oss stores codes as (experts, out, blocks, 16); transformers loads the weight as (experts, in, out), OpenAI's
own code, whose files have other names (``.blocks``), as (experts, out, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..composition import decoded, reshape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._decoder import EXPONENTS, Request, UndecodableError, as_exponents, groups_of

__all__ = ["DECODER"]

_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], "<f4")
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], -1)
"""The two values that each byte represents."""


class _FourBits:
    """The decoder of 4-bit floats.

    ``Decoded.facts`` has ``block`` (how many elements share a scale) and ``turned`` (1 if the last two dimensions of
    the weight are exchanged). The stored tensors are, by role, ``codes`` (..., out, in / 2), ``scale`` (..., out,
    blocks), and perhaps a global scale: ``times`` if values are multiplied by it, ``over`` if they are divided by it.
    """

    families = ("mxfp4", "nvfp4")

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        blocks = next((asked.parts[end] for end in ("_scales", ".scales") if end in asked.parts), None)
        if blocks is not None:  # gpt-oss
            *outer, number, nbytes = codes.shape
            if blocks.shape != (*outer, number):
                raise UndecodableError(
                    f"the scales have the shape {list(blocks.shape)}, not {[*outer, number]}, one for each block"
                )
            if asked.coded.shape is None:
                raise UndecodableError("the shape cannot be determined from the headers")
            codes = reshape(codes, (*outer, number * nbytes))
            found = (("codes", codes), ("scale", as_exponents(blocks)))
            facts = (("block", nbytes * 2), ("turned", int("_scales" in asked.parts and len(outer) == 2)))
            return decoded(asked.coded.shape, Decoded(found, "fp4", facts))
        scale = next(
            (
                asked.parts[end]
                for end in (".weight_scale", ".weight_scale_inv", ".scale", "_scale_inv", "_scale")
                if end in asked.parts
            ),
            None,
        )
        columns = codes.shape[-1] * 2
        if ".weight_sf" in asked.parts:
            raise UndecodableError("the scales are stored in the order of a GPU kernel (weight_sf)")
        if scale is None:
            raise UndecodableError("the tensor has no scales")
        if scale.shape[:-1] != codes.shape[:-1] or not scale.shape[-1:] or not scale.shape[-1]:
            raise UndecodableError(
                f"the scales have the shape {list(scale.shape)}, but the codes {list(codes.shape)}: all but the last "
                "dimension must be equal"
            )
        sizes = (32,) if scale.dtype in EXPONENTS else (16, 32)  # mxfp4, nvfp4
        if columns % scale.shape[-1] or columns // scale.shape[-1] not in sizes:
            wanted = " or ".join(map(str, sizes))
            raise UndecodableError(
                f"a row of {columns} columns has {scale.shape[-1]} scales, not one for each {wanted} columns"
            )
        named = [("times", ".weight_scale_2"), ("over", ".weight_global_scale")]
        whole = [(name, asked.parts[end]) for name, end in named if end in asked.parts]
        if not whole and scale.dtype not in EXPONENTS and ".weight_packed" in asked.parts:
            raise UndecodableError("the weight_global_scale is missing")
        many = next((info.numel for _, info in whole if info.numel != 1), 1)
        if many != 1:
            raise UndecodableError(f"the global scale has {many:,} values, not one")
        facts = (("block", columns // scale.shape[-1]), ("turned", 0))
        stored = (("codes", replace(codes, dtype="uint8")), ("scale", as_exponents(scale)), *whole)
        return decoded((*codes.shape[:-1], columns), Decoded(stored, "fp4", facts))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        facts, (*lead, outputs, inputs) = dict(made.facts), box
        if facts.get("turned"):
            outputs, inputs = inputs, outputs
        found: dict[str, Box] = {
            "codes": (*lead, outputs, groups_of(inputs, 2)),
            "scale": (*lead, outputs, groups_of(inputs, int(facts["block"]))),
        }
        return {**found, **{name: tuple((0, size) for size in one.shape) for name, one in made.parts[2:]}}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        facts, (*_, outputs, inputs) = dict(made.facts), box
        block = int(facts["block"])
        inputs = outputs if facts.get("turned") else inputs
        scale = arrays["scale"].astype("<f4")
        if "times" in arrays:
            scale = scale * arrays["times"].astype("<f4").reshape(-1)[:1]
        if "over" in arrays:
            scale = scale / arrays["over"].astype("<f4").reshape(-1)[:1]
        pairs = _PAIRS[arrays["codes"].view("u1")]
        values: Array = pairs.reshape(*pairs.shape[:-2], -1)[..., inputs[0] % 2 :][..., : inputs[1] - inputs[0]]
        values = values * np.take(scale, np.arange(*inputs) // block - inputs[0] // block, -1)
        return np.swapaxes(values, -1, -2) if facts.get("turned") else values


DECODER = _FourBits()
