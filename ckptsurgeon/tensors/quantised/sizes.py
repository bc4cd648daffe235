"""Compares the sizes of codes, scales and zero points of a weight, and lists the decoded shapes of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

from ..info import TensorInfo
from .encoding import Parts, QuantisedTensor, QuantisedTensors
from .methods import family
from .settings import Settings, StatedValues, stated_by

__all__ = ["logical_shapes", "unfit_sizes"]

Shape = tuple[int, ...]

_WORD, _BITS = 32, range(2, 9)
_GROUPS = {"nvfp4": 16, "mxfp4": 32}
"""{family of encodings: how many codes share a scale}; settings of ModelOpt may contain a different number."""
_TILE = (128, 4)
"""Scales of 4-bit floats may be padded to multiples of these (rows, columns), the tiles of a GPU kernel (ComfyUI)."""
_SMALLEST = 8
"""The smallest size of a block of 8-bit numbers along a dimension, other than 1."""
_OF_CODES = (".weight_scale", ".weight_descale")
_MAPS = {".quant_map": 16, ".nested_quant_map": 256}
"""{ending: number of values in this table}; bitsandbytes' codes are indices into such tables."""


def logical_shapes(codes: QuantisedTensors) -> dict[str, Shape]:
    """Return {name of a quantised weight: its decoded shape}; the name is the key that it would have if not quantised.

    If only the number of parameters can be determined from the headers, as for bitsandbytes, the shape is (number,).
    """
    shapes = {one.name: one.shape or (one.parameters and (one.parameters,)) for one in codes.tensors}
    return {name: shape for name, shape in shapes.items() if shape}


def unfit_sizes(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> Iterator[tuple[str, str]]:
    """Yield (tensor, name of the weight) for each tensor, such as a scale, whose size does not fit the codes."""
    stated, unfit = stated_by(settings), dict[int, list[str]]()
    for form, one in codes.by_form().items():
        check = _CHECKS.get(family(one.method))
        if check is not None and one.codes:
            parts = {end: tensors[key] for end, key in one.parts.items()}
            unfit[form] = [end.rpartition(".")[2] for end in check(one, parts, stated)]
    if any(unfit.values()):
        yield from ((end, one.name) for one in codes.tensors for end in unfit.get(one.form, ()))


def _gptq(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    """Yield ``.g_idx`` or ``.qzeros`` of GPTQ, whichever is wrong, if the two imply different numbers of bits.

    The bits in the settings decide which of the two is wrong.
    """
    order, zeros = parts.get(".g_idx"), parts.get(".qzeros")
    if order is None or not order.numel:
        return
    words, outputs = parts[".qweight"].shape
    bits = stated.bits or _BITS
    shown = [one for one in _BITS if zeros is None or not zeros.shape or _fill(outputs, one, zeros.shape[-1])]
    if not any(_fill(order.numel, one, words) for one in {*shown, *bits}):
        yield ".g_idx"
    elif stated.bits and not any(one in shown for one in bits) and any(_fill(order.numel, one, words) for one in bits):
        yield ".qzeros"


def _fill(columns: int, bits: int, words: int) -> bool:
    """Return whether ``columns`` codes of ``bits`` bits fill ``words`` words of 32 bits; the last may be part full."""
    return columns * bits // _WORD <= words <= -(-columns * bits // _WORD)


def _packed(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    codes, scale = parts.get(".weight_packed"), parts.get(".weight_scale")
    if codes is None or scale is None or len(codes.shape) != 2:
        return
    order, zeros = parts.get(".weight_g_idx"), parts.get(".weight_zero_point")
    if len(scale.shape) == 2 and scale.numel > 1 and scale.shape[0] != codes.shape[0]:
        yield ".weight_scale"
    elif zeros is not None and len(zeros.shape) == len(scale.shape) == 2 and zeros.shape[1] != scale.shape[1]:
        yield ".weight_zero_point"
    bits = [scheme.bits for scheme in stated.schemes if scheme.bits] or _BITS
    if order is not None and order.numel and not any(_fill(order.numel, one, codes.shape[1]) for one in bits):
        yield ".weight_g_idx"


def _fp4(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    scale, shape = parts.get(".weight_scale"), one.shape or ()
    if scale is None or len(shape) < 2 or not all(shape):
        return
    usual = _GROUPS[family(one.method)]
    if not any(scale.numel in _scales(shape, size) for size in (usual, *stated.sizes) if size > 0):
        yield ".weight_scale"
    for end in (".weight_global_scale", ".weight_scale_2") if len(shape) == 2 else ():
        if end in parts and parts[end].numel != 1:
            yield end


def _scales(shape: Shape, size: int) -> tuple[int, int]:
    """Return how many scales a weight has, without and with padding to tiles, if ``size`` columns share a scale."""
    rows, groups = shape[-2], -(-shape[-1] // size)
    padded = [-(-number // multiple) * multiple for number, multiple in zip((rows, groups), _TILE, strict=True)]
    return prod(shape[:-2]) * rows * groups, prod(shape[:-2]) * prod(padded)


def _bytes(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    """Yield the endings of the scales (of blocks, rows or the whole tensor) that do not fit a matrix of 8-bit codes."""
    shape = one.shape or ()
    if len(shape) != 2 or not all(shape):
        return
    own = parts.get(".weight_scale")
    if stated.method == "compressed-tensors" and own is not None and own.shape == shape[:1] != (1,):
        yield ".weight_scale"  # compressed-tensors stores channel scales as a column: [rows, 1]
    for end, scale in parts.items():
        if end.startswith(_OF_CODES) and len(scale.shape) == 1 and scale.numel not in (1, shape[0]):
            yield end
        elif end.startswith(_OF_CODES) and len(scale.shape) == 2 and not all(map(_divides, scale.shape, shape)):
            blocks = (tuple(map(_blocks_in, shape, block)) for _, block in stated.blocks)
            if scale.numel not in (1, *shape) and scale.shape not in blocks:
                yield end


def _blocks_in(length: int, block: int) -> int:
    return -(-length // block)


def _divides(scales: int, length: int) -> bool:
    """Return whether ``length`` elements may have ``scales`` scales: one in all, one per element or one per block."""
    return scales in (1, length) or scales * _SMALLEST <= length + _SMALLEST


def _mlx(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    if ".biases" in parts and parts[".biases"].shape != parts[".scales"].shape:
        yield ".biases"


def _bitsandbytes(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[str]:
    yield from (end for end, number in _MAPS.items() if end in parts and parts[end].numel != number)
    if ".SCB" in parts and one.shape and parts[".SCB"].numel != one.shape[0]:
        yield ".SCB"


_CHECKS: Mapping[str, Callable[[QuantisedTensor, Parts, StatedValues], Iterator[str]]] = {
    "GPTQ": _gptq,
    "packed": _packed,
    "nvfp4": _fp4,
    "mxfp4": _fp4,
    "fp8": _bytes,
    "int8": _bytes,
    "MLX": _mlx,
    "bitsandbytes": _bitsandbytes,
}
