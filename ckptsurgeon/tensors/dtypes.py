"""Lists the dtypes by torch's names, with their sizes and strides, and finds NaN and infinite values in their bytes.

It does so without numpy, so that copying a tensor does not import numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = [
    "BLOCKS",
    "BLOCK_EXPONENTS",
    "BLOCK_SCALES",
    "DTYPES",
    "OF_SHORT_ROWS",
    "ROUNDED",
    "SATURATED",
    "TORCH_QUANTISED",
    "DType",
    "contiguous_stride",
    "dtype_named",
    "has_non_finite",
    "is_masked",
    "reach",
    "size_of_float",
]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, under torch's name.

    ``bits`` is the size of one element; ``values`` is how many numbers an element packs (2 for ``float4_e2m1fn_x2``).
    For a type of GGUF that stores blocks of codes, an element is one byte, and ``block`` is (numbers in a block, bytes
    of a block).
    """

    name: str
    bits: int
    kind: str
    values: int = 1
    block: tuple[int, int] | None = None

    @property
    def is_floating(self) -> bool:
        """Whether this is a real or complex floating-point type: only tensors of such types are trained."""
        return self.kind in ("float", "complex")

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes, as torch counts it: 1 if an element has fewer than 8 bits."""
        return max(1, self.bits // 8)

    @property
    def is_packed(self) -> bool:
        """Whether an element has fewer than 8 bits, or packs several numbers: tensors of this type are only copied."""
        return self.bits % 8 != 0 or self.values > 1 or self.block is not None


BLOCKS: Mapping[str, tuple[int, int]] = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34), "q8_1": (32, 40),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "q8_k": (256, 292), "iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq3_xxs": (256, 98), "iq1_s": (256, 50),
    "iq4_nl": (32, 18), "iq3_s": (256, 110), "iq2_s": (256, 82), "iq4_xs": (256, 136), "iq1_m": (256, 56),
    "tq1_0": (256, 54), "tq2_0": (256, 66), "mxfp4": (32, 17), "nvfp4": (64, 36), "q1_0": (128, 18),
}  # fmt: skip
"""The types of GGUF that store codes and scales together, in blocks, each with (numbers in a block, bytes of a block).

https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""
BLOCK_SCALES: Mapping[str, tuple[int, int]] = {
    "q4_0": (0, 1), "q4_1": (0, 2), "q5_0": (0, 1), "q5_1": (0, 2), "q8_0": (0, 1), "q8_1": (0, 2), "q2_k": (80, 2),
    "q3_k": (108, 1), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208, 1), "iq2_xxs": (0, 1), "iq2_xs": (0, 1),
    "iq2_s": (0, 1), "iq3_xxs": (0, 1), "iq3_s": (0, 1), "iq1_s": (0, 1), "iq4_nl": (0, 1), "iq4_xs": (0, 1),
}  # fmt: skip
"""{type in ``BLOCKS``: (offset of the float16 numbers in a block, how many there are)}; the first number is a scale."""
BLOCK_EXPONENTS: Mapping[str, int] = {"mxfp4": 0}
"""{type in ``BLOCKS`` whose scales are powers of two: offset of the byte with the exponent in a block}."""
ROUNDED: Mapping[str, int] = {
    "q8_0": 8, "q6_k": 14, "q5_k": 13, "q5_1": 7, "q5_0": 6, "q4_k": 12, "q4_1": 3, "q4_0": 2, "q3_k": 11, "q2_k": 10,
    "mxfp4": 39,
}  # fmt: skip
"""The types in ``BLOCKS`` that this package can write, each with its number in ``enum ggml_type``."""
OF_SHORT_ROWS: Mapping[str, str] = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0", "q3_k": "q4_0", "q2_k": "q4_0"}
"""{type with blocks of 256 numbers: type with blocks of 32} for tensors whose rows do not divide into blocks of 256.

For q4_k, q5_k and q6_k these are the types that llama.cpp uses (``llama_tensor_get_type``).
"""


def _table() -> dict[str, DType]:
    rows = {
        "float": {
            "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
            "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
            "float8_e8m0fnu": 8, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
        },
        "int": {"int64": 64, "int32": 32, "int16": 16, "int8": 8},
        "uint": {"uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8},
        "bool": {"bool": 8},
        "complex": {"complex128": 128, "complex64": 64, "complex32": 32},
        "quantized": {"quint8": 8, "qint8": 8, "qint32": 32, "quint4x2": 4, "quint2x4": 2},
        "bits": {"bits1x8": 8, "bits2x4": 8, "bits4x2": 8, "bits8": 8, "bits16": 16},
    }  # fmt: skip
    table = {name: DType(name, bits, kind) for kind, names in rows.items() for name, bits in names.items()}
    table["float4_e2m1fn_x2"] = DType("float4_e2m1fn_x2", 8, "float", values=2)
    return table | {name: DType(name, 8, "quantized", block=block) for name, block in BLOCKS.items()}


DTYPES: Mapping[str, DType] = _table()
TORCH_QUANTISED = frozenset(name for name, one in DTYPES.items() if one.kind == "quantized" and one.block is None)
"""The types of tensors that torch quantised, whose scales and zero points are stored with the tensor."""
_SHORT = {
    "double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "f64": "float64", "f32": "float32", "f16": "float16", "fp64": "float64", "fp32": "float32",
    "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8",
}  # fmt: skip


def dtype_named(text: str) -> str:
    """Return torch's name of the dtype that a user calls ``text``, such as ``bf16``, ``torch.float16`` or ``half``.

    Raises ConfigError for an unknown name, and for the name of a type of GGUF that stores blocks of codes.
    """
    name = text.strip().removeprefix("torch.").lower()
    name = _SHORT.get(name, name)
    if name in BLOCKS:
        raise ConfigError(
            f"{text!r} is a way to quantise, not a dtype that values are cast to.",
            hint="Use one of float32, float16, bfloat16, float64, … ckpt convert quantises with --quantize, or to GGUF "
            "with --gguf-type.",
        )
    if name not in DTYPES:
        raise ConfigError(f"there is no dtype {text!r}.", hint="Use one of float32, float16, bfloat16, float64, …")
    return name


SATURATED = {"float8_e4m3fn": 464.0}
"""{type without infinity: the largest number that rounds to the largest value of the type}.

torch casts even larger numbers to that largest value (448 for ``float8_e4m3fn``), not to NaN.
"""


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a row-major tensor of ``shape``."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return the number of elements that a strided tensor spans in its storage, from its first to its last element.

    Returns 0 for a tensor without elements.
    """
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


_MASK = re.compile(r"mask|(?:attn|attention)\.bias$|causal|inf\b", re.IGNORECASE)
_EXPONENTS = {
    "float64": (8, 0x7F, 0xF0),
    "float32": (4, 0x7F, 0x80),
    "bfloat16": (2, 0x7F, 0x80),
    "float16": (2, 0x7C, 0),
}
"""{dtype: (bytes of a value, mask of the exponent bits in its last byte, mask of those in the byte before)}.

Values are little-endian. If all exponent bits are set, the value is not finite.
"""
_TOPS = {bits: [bytes([top]) for top in range(256) if top & bits == bits] for _, bits, _ in _EXPONENTS.values()}
"""{mask: all bytes in which the bits of the mask are set}."""
_EIGHT_BITS = {
    "float8_e4m3fn": [b"\x7f", b"\xff"],
    "float8_e5m2": [bytes([one]) for one in range(256) if one & 0x7C == 0x7C],
    "float8_e4m3fnuz": [b"\x80"],
    "float8_e5m2fnuz": [b"\x80"],
}
"""{dtype of 8 bits: the codes of the values that are not finite}."""


def is_masked(key: str) -> bool:
    """Return whether a tensor is a mask, by its key. Masks contain infinities on purpose."""
    return _MASK.search(key) is not None


def size_of_float(dtype: str) -> int:
    """Return the size in bytes of a value of ``dtype``; 0 for a dtype that ``has_non_finite`` cannot read."""
    return 1 if dtype in _EIGHT_BITS else _EXPONENTS[dtype][0] if dtype in _EXPONENTS else 0


def has_non_finite(dtype: str, raw: bytes) -> bool:
    """Return whether a NaN or an infinity is among little-endian values; ``size_of_float(dtype)`` must not be 0.

    A block of 64 kB takes 50 microseconds.
    """
    if dtype in _EIGHT_BITS:
        return any(one in raw for one in _EIGHT_BITS[dtype])
    size, last, before = _EXPONENTS[dtype]
    tops = raw[size - 1 :: size]
    return any(raw[at * size + size - 2] & before == before for top in _TOPS[last] for at in _places(tops, top))


def _places(data: bytes, byte: bytes) -> Iterator[int]:
    at = data.find(byte)
    while at >= 0:
        yield at
        at = data.find(byte, at + 1)
