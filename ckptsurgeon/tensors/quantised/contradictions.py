"""Finds fields of a ``quantization_config`` that contradict the stored tensors of a quantised weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from ..dtypes import DTYPES
from ..info import TensorInfo
from .block_scales import FUSED, are_without_blocks, fitted_scales
from .encoding import Parts, QuantisedTensor
from .packings import PACKING, other_packings
from .settings import BLOCK_SETTINGS, Scheme, StatedValues

__all__ = [
    "BYTES",
    "COLUMNS_FIRST",
    "FORMATS",
    "GROUPED",
    "ROWS_FIRST",
    "STORAGE",
    "STORED_BY",
    "TYPES",
    "Contradiction",
    "cast_from",
    "contradicted",
    "is_odd_size",
    "is_of_fused",
]

SCALES = (".weight_scale", "_scale_inv")
STORAGE = "bnb_4bit_quant_storage"
ROWS_FIRST, COLUMNS_FIRST = ("gemm", "exllama", "ipex"), ("gemv", "gemv_fast")
"""Versions of AWQ that pack codes along the outputs, and versions that pack codes along the inputs."""
FORMATS = ("gptq", "gptq_v2")
"""Formats of GPTQ: the first stores zero points minus one, the second as they are."""
BYTES = "packed integers with scales"
"""The name of the encoding in ``other_methods`` that may have several codes in a byte."""
COMPRESSED = "compressed"
"""The ``quantization_status`` in compressed-tensors of weights that are stored as codes."""
STORED_BY: Mapping[str, tuple[str, ...]] = {
    "pack-quantized": ("packed",),
    "marlin-24": ("packed",),
    "int-quantized": ("int8",),
    "naive-quantized": ("int8", "fp8", "mxfp8"),
    "float-quantized": ("fp8", "mxfp8"),
    "mxfp8-quantized": ("fp8", "mxfp8"),
    "nvfp4-pack-quantized": ("nvfp4",),
    "mxfp4-pack-quantized": ("mxfp4",),
}
"""The families of encodings that each ``format`` of compressed-tensors stores.

https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/config/base.py
"""
GROUPED = ("group", "dynamic")
"""With these values of ``actorder``, the order of columns is stored in ``weight_g_idx``.

With the other values, "weight" and "static", the columns of a group are contiguous.
https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/quantization/quant_args.py
"""
TYPES = {"packed": "int", "int8": "int", "fp8": "float", "mxfp8": "float", "nvfp4": "float", "mxfp4": "float"}
"""{family of encodings: ``type`` of its codes in the settings of compressed-tensors}."""
WIDTHS = {"fp8": 8, "mxfp8": 8, "nvfp4": 4, "mxfp4": 4}
"""{family of encodings of floats: bits of a code}. The bits of integers may be fewer than those of their dtype."""


OF_EXPONENTS = frozenset({"mxfp4", "mxfp8", "nvfp4"})
"""Modes of MLX whose scales are bytes, without biases; scales of the mode "affine" are floats, with biases."""


class Contradiction(NamedTuple):
    """A field of the settings, its value (``said``), and the value that the tensors imply instead (``found``).

    ``verb`` is the verb before ``found`` in a message on the tensors: they "say" a number, or "have", "are"
    or "need" something.
    """

    field: str
    said: str
    found: str
    verb: str = "say"


def contradicted(kind: str, one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    """Yield each setting in ``stated`` that contradicts a quantised tensor.

    ``kind`` is the family of its encoding, such as GPTQ. ``parts`` are its stored tensors by the endings of their keys.
    The result depends only on the ``form`` of the tensor, so one call serves all tensors with this form. But the caller
    has to drop a contradiction for each tensor for which ``is_of_fused`` is true.
    """
    if fitting := other_packings(kind, stated.packing):
        yield Contradiction(PACKING, stated.packing or "", f"{' or '.join(fitting)} ({kind})", "need")
    if kind == "GPTQ" and stated.format in ("", *FORMATS):
        yield from _bits(one, parts[".qweight"], stated)
        yield from _groups(one, parts[".scales"].shape[0], stated)
        if stated.flags.get("desc_act") and ".g_idx" not in parts and parts[".scales"].shape[0] > 1:
            yield Contradiction("desc_act", "true", "no g_idx", "have")
    elif kind == "GPTQ" and stated.format == "marlin" and stated.method == "gptq" and ".qzeros" in parts:
        yield Contradiction("checkpoint_format", "marlin", "gptq")
    elif kind == "AWQ":
        yield from _awq(one, parts, stated)
    elif kind == "MLX":
        yield from _mlx(one, parts, stated)
    elif kind == "bitsandbytes":
        yield from _bitsandbytes(one, parts, stated)
    elif kind == "fp8":
        yield from _blocks(one, parts, stated)
        yield from _float(parts, stated)
    elif kind == "packed" and {".weight_packed", ".weight_scale"} <= {*parts}:
        yield from _packed(one, parts, stated)
    if kind in TYPES and stated.method == "compressed-tensors" and stated.schemes:
        each = [list(_scheme(kind, one, parts, scheme)) for scheme in stated.schemes]
        yield from each[0] if all(each) else ()
        if stated.texts.get("quantization_status", COMPRESSED) != COMPRESSED:
            yield Contradiction("quantization_status", stated.texts["quantization_status"], COMPRESSED, "are")


def _scheme(kind: str, one: QuantisedTensor, parts: Parts, scheme: Scheme) -> Iterator[Contradiction]:
    """Yield each setting in ``scheme``, a config group of compressed-tensors, that contradicts a quantised tensor."""
    if one.method == BYTES and "int8" in STORED_BY.get(scheme.format, ()):
        yield Contradiction("format", scheme.format, "codes of uint8 in place of int8", "have")
    elif kind not in STORED_BY.get(scheme.format, (kind,)):
        yield Contradiction("format", scheme.format, one.method)
    elif scheme.type in TYPES.values() and scheme.type != TYPES[kind]:
        yield Contradiction("type", scheme.type, one.method)
    elif scheme.bits and scheme.bits != WIDTHS.get(kind, scheme.bits):
        yield Contradiction("num_bits", str(scheme.bits), str(WIDTHS[kind]))
    else:
        if ".weight_scale" in parts:
            yield from _grouping(kind, one, parts[".weight_scale"].shape, scheme)
        if kind in ("packed", "int8") and scheme.symmetric is False and ".weight_zero_point" not in parts:
            yield Contradiction("symmetric", "false", "no weight_zero_point", "have")
        # Packed zero points are written only for asymmetric codes; zero points that are not packed may all be 0.
        zero = parts.get(".weight_zero_point")
        if kind == "packed" and scheme.symmetric and zero is not None and zero.dtype == "int32":
            yield Contradiction("symmetric", "true", "weight_zero_point", "have")
        if kind == "packed" and scheme.actorder in GROUPED and ".weight_g_idx" not in parts:
            yield Contradiction("actorder", scheme.actorder, "no weight_g_idx", "have")
        if kind == "packed" and scheme.actorder not in GROUPED and ".weight_g_idx" in parts:
            yield Contradiction("actorder", scheme.actorder or "null", "weight_g_idx", "have")


def _grouping(kind: str, one: QuantisedTensor, scale: tuple[int, ...], scheme: Scheme) -> Iterator[Contradiction]:
    """Yield the strategy or the group size in ``scheme`` if the shape of a tensor's scales (``scale``) contradicts it.

    The group size of packed integers is compared in ``_packed``.
    """
    shape = one.shape or ()
    shows = {1: "tensor", shape[0]: "channel"}.get(prod(scale), "") if len(shape) == 2 and shape[0] > 1 else ""
    if kind in ("fp8", "int8") and shows and {scheme.strategy, shows} == {"tensor", "channel"}:
        yield Contradiction("strategy", scheme.strategy, shows)
    if len(shape) != 2 or len(scale) != 2 or scale[0] != shape[0] or scale[1] < 2:
        return
    if scheme.strategy in ("channel", "tensor"):
        yield Contradiction("strategy", scheme.strategy, "group")
    elif kind in ("nvfp4", "mxfp4") and scheme.size and scheme.size * scale[1] != shape[1]:
        yield Contradiction("group_size", str(scheme.size), str(shape[1] // scale[1]))


def _bitsandbytes(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    asked = [name for name in ("load_in_4bit", "load_in_8bit") if stated.flags.get(name)]
    kind, said = one.method.rpartition(" ")[2], stated.texts.get("bnb_4bit_quant_type", "")
    if asked and ("load_in_8bit" if kind == "int8" else "load_in_4bit") not in asked:
        yield Contradiction(asked[0], "true", one.method)
    elif {said, kind} == {"fp4", "nf4"}:
        yield Contradiction("bnb_4bit_quant_type", said, kind, "are")
    if cast := cast_from(parts, stated.texts.get(STORAGE)):
        yield Contradiction(STORAGE, cast, f"stored as {parts[''].dtype} (a cast changed their bytes)", "are")


def cast_from(parts: Parts, storage: object) -> str:
    """Return the dtype that 4-bit codes of bitsandbytes had before a cast changed their bytes; "" if nothing was cast.

    Two codes are in a byte, and the bytes may be stored in a tensor of floats. ``storage`` is the setting
    ``bnb_4bit_quant_storage``, the dtype of this tensor. If the tensor now has another dtype, it was cast.
    """
    told = storage.removeprefix("torch.") if isinstance(storage, str) else ""
    is_other = "" in parts and told in DTYPES and parts[""].dtype != told
    return told if is_other and DTYPES[parts[""].dtype].kind == "float" else ""


def _float(parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    """Yield the field ``fmt`` of DeepSeek's settings if it names another type of 8-bit floats than the tensors have."""
    said, kind = stated.texts.get("fmt", ""), next(iter(parts.values())).dtype.removeprefix("float8_")[:4]
    if {said, kind} == {"e4m3", "e5m2"}:
        yield Contradiction("fmt", said, kind, "are")


def _bits(one: QuantisedTensor, codes: TensorInfo, stated: StatedValues) -> Iterator[Contradiction]:
    bits = codes.numel * 32 // one.parameters if one.parameters else 0
    if stated.bits and bits and bits not in stated.bits:
        yield Contradiction("bits", str(stated.bits[0]), str(bits))


def _groups(one: QuantisedTensor, groups: int, stated: StatedValues) -> Iterator[Contradiction]:
    columns = one.shape[-1] if one.shape else 0
    usual = [size for size in stated.sizes if not is_odd_size(size, columns, groups)]
    possible = [-(-columns // size) if size > 0 else 1 for size in usual]
    if stated.sizes and columns and groups and groups not in possible:
        size = str(columns // groups) if columns % groups == 0 else f"{groups} scales for {columns} columns"
        yield Contradiction("group_size", str(stated.sizes[0]), size)


def is_odd_size(size: int, columns: int, groups: int) -> bool:
    """Return whether ``size``, a group size in settings, leaves a smaller last group, but equal groups are usual ones.

    A usual group size is a power of two: 4 groups of 128 columns have 32 columns each, not 40, 40, 40 and 8.
    """
    equal = columns // groups if groups > 1 and columns % groups == 0 else 0
    return equal.bit_count() == 1 and size > 0 and size != equal


def _awq(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    codes, scales = parts[".qweight"].shape, parts[".scales"].shape
    if scales[0] == codes[0]:
        if stated.version in ROWS_FIRST:
            yield Contradiction("version", stated.version, "gemv")
        elif len(codes) == len(scales) == 2:
            yield from _gemv(codes[1] * 8, scales[1], stated)
        return
    if stated.version in COLUMNS_FIRST:
        yield Contradiction("version", stated.version, "gemm")
    yield from _bits(one, parts[".qweight"], stated)
    yield from _groups(one, scales[0], stated)


def _gemv(columns: int, groups: int, stated: StatedValues) -> Iterator[Contradiction]:
    """Yield the group size in the settings if it contradicts the number of groups in a tensor of AWQ's gemv layout.

    The number of groups may be padded, since eight groups share a 32-bit word of zero points.

    https://github.com/casper-hansen/AutoAWQ/blob/main/awq/modules/linear/gemv.py (calculate_zeros_width)
    """
    sizes = [size for size in stated.sizes if size > 0]
    words = [-(-columns // size // 8) for size in sizes]
    padded = {-(-number // multiple) * multiple * 8 for number in words for multiple in (1, 2, 4)}
    if sizes and groups not in {*padded, *(columns // size for size in sizes)}:
        yield Contradiction("group_size", str(sizes[0]), f"{groups} scales for {columns} columns")


def _mlx(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    dtype = parts[".scales"].dtype
    if stated.modes and OF_EXPONENTS.issuperset(stated.modes) and ".biases" in parts and dtype != "uint8":
        yield Contradiction("mode", stated.modes[0], "affine")
        return
    if set(stated.modes) == {"affine"} and ".biases" not in parts and dtype == "uint8":
        yield Contradiction("mode", "affine", "scales of uint8", "have")
        return
    words, groups = parts[".weight"].shape[-1], parts[".scales"].shape[-1]
    if one.shape:
        yield from _bits(one, parts[".weight"], stated)
        yield from _groups(one, groups, stated)
    elif (
        stated.bits
        and stated.sizes
        and not any(b * g * groups == words * 32 for b in stated.bits for g in stated.sizes)
    ):
        yield Contradiction("group_size", str(stated.sizes[0]), f"{groups} scales for {words} words of 32 bits")


def _blocks(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    name, blocks = next(iter(stated.blocks), ("", (1, 1)))
    if stated.method == "fp8" and "weight_block_size" in stated.nulls:
        yield from _blocks_without_size(one, parts)
    scale = next((info for end, info in parts.items() if end.endswith("_scale_inv")), None)
    if scale is None and name == "block_structure" and one.method.endswith("block scales"):
        scale = parts.get(".weight_scale")
    shape = one.shape or ()
    if not name or scale is None or len(shape) < 2 or one.method == "mxfp8":  # mxfp8 always has blocks of 32 columns
        return
    wanted = -(-shape[-2] // blocks[0]), -(-shape[-1] // blocks[1])
    if scale.numel != prod(wanted) * prod(shape[:-2]) or (len(scale.shape) > 1 and scale.shape[-2:] != wanted):
        is_without = are_without_blocks(
            shape, fitted_scales(shape, scale.shape)
        )  # a scale that is decoded without a block size
        verb = "have" if is_without else "say"
        yield Contradiction(name, str(list(blocks)), f"{scale.shape} scales for {shape}", verb)


def is_of_fused(fact: Contradiction, name: str) -> bool:
    """Return whether ``fact`` is about block sizes and ``name`` is a fused weight.

    Then there is no contradiction: the weights in a fused weight (query, key and value) have separate blocks.
    """
    return fact.field in BLOCK_SETTINGS and fact.said != "null" and FUSED.search(name) is not None


def _blocks_without_size(one: QuantisedTensor, parts: Parts) -> Iterator[Contradiction]:
    """Yield a contradiction if there is a scale for each block, but the block size in the settings is null.

    Null is correct if there is one scale for each tensor, as in Mistral's models.
    """
    shape, scale = one.shape or (), next((info.shape for end, info in parts.items() if end.startswith(SCALES)), ())
    if one.method.endswith("block scales") and len(shape) == len(scale) == 2 and min(scale[1], shape[1]) > 1:
        yield Contradiction("weight_block_size", "null", "block scales")


def _packed(one: QuantisedTensor, parts: Parts, stated: StatedValues) -> Iterator[Contradiction]:
    """Yield the bit width or the group size of packed integers if no config group of compressed-tensors has it."""
    bits = [scheme.bits for scheme in stated.schemes if scheme.bits]
    told = re.match(r"int(\d+) ", one.method)
    if told and bits and int(told[1]) not in bits:
        yield Contradiction("num_bits", str(bits[0]), told[1])
        return
    words, scale = parts[".weight_packed"].shape[-1], parts[".weight_scale"]
    groups = scale.shape[-1] if len(scale.shape) > 1 else 1
    sizes = [(scheme.bits, scheme.size) for scheme in stated.schemes]
    if sizes and all(map(all, sizes)) and not any(_could_be(words, groups, *each) for each in sizes):
        yield _other_packing(words, groups, *sizes[0])


LIKELY_BITS, LEAST_GROUP = (4, 8), 32
"""The usual bit widths of packed integers, and the smallest usual size of their groups."""


def _other_packing(words: int, groups: int, bits: int, size: int) -> Contradiction:
    """Return the wrong setting (num_bits, group_size or either) for rows with ``groups`` groups in ``words`` words.

    A word has 32 bits. The shapes determine only the product of num_bits and group_size. So a setting is taken for
    wrong if, in its place, a usual value (``LIKELY_BITS``, or a power of two from ``LEAST_GROUP`` on) would fit.
    """
    if not groups:  # a file may have scales without elements
        return Contradiction("group_size", str(size), f"no groups in {words} words")
    of_bits, of_size = words * 32 / (groups * size), words * 32 / (groups * bits)
    may_be_bits = of_bits in LIKELY_BITS
    may_be_size = of_size >= LEAST_GROUP and of_size.is_integer() and int(of_size).bit_count() == 1
    if may_be_bits and may_be_size:
        either = f"num_bits {of_bits:.0f} or group_size {of_size:.0f}"
        return Contradiction(f"num_bits {bits} with group_size", str(size), either)
    if may_be_bits:
        return Contradiction("num_bits", str(bits), f"{of_bits:.0f}")
    found = f"{of_size:.0f}" if may_be_size else f"{groups} groups in {words} words"
    return Contradiction("group_size", str(size), found)


def _could_be(words: int, groups: int, bits: int, size: int) -> bool:
    """Return whether ``groups`` groups of ``size`` numbers with ``bits`` bits fit in ``words`` words of 32 bits.

    The last word may be padded.
    """
    least, most = (words - 1) * 32 // bits + 1, words * 32 // bits
    if is_odd_size(size, most, groups):
        return False
    return -(-least // size) <= groups <= -(-most // size)
