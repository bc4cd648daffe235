"""Recognises compressed-tensors' ``pack-quantized``: integers of few bits packed into 32-bit words.

The stored tensors are ``weight_packed`` (out, in * bits / 32), ``weight_scale`` (out, groups), ``weight_zero_point``
(out * bits / 32, groups), and ``weight_shape``. The values of ``weight_shape`` are the shape of the weight, but only
shapes, not values, are in the header. https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Iterator

from ..quantised.encoding import Encoding, LogicalTensor, Parts, some
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]

_LIKELY = (4, 8)
_LONGEST = 1024


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    codes, order = parts[".weight_packed"], parts.get(".weight_g_idx")
    if len(codes.shape) < 2 or not codes.numel:
        return None
    words = codes.shape[-1]
    possible = sorted(set(_bits(parts, quantisation)))
    columns = order.numel if order is not None else 0
    if not any(columns * bits // 32 <= words <= -(-columns * bits // 32) for bits in possible):
        columns = 0
    if len(possible) > 1 and not columns:
        return LogicalTensor("packed integers (compressed-tensors)", None, at_least=codes.numel * 32 // possible[-1])
    columns = columns or words * 32 // possible[0]
    bits = possible[0] if len(possible) == 1 else words * 32 // columns
    return LogicalTensor.of(f"int{bits} packed (compressed-tensors)", (*codes.shape[:-1], columns))


def _bits(parts: Parts, quantisation: QuantisationSettings) -> Iterator[int]:
    """Yield the possible numbers of bits of a code.

    If there are packed zero points, their shape implies the only number. Otherwise, each number in the settings that
    fits the shapes is yielded.
    """
    codes, scale, zeros = parts[".weight_packed"], parts[".weight_scale"], parts.get(".weight_zero_point")
    if zeros is not None and zeros.dtype == "int32" and len(zeros.shape) == len(codes.shape):
        rows, packed = codes.shape[-2], zeros.shape[-2]
        fitting = [bits for bits in range(1, 33) if -(-rows * bits // 32) == packed] or [_LIKELY[0]]
        told = {one.number("num_bits", most=32) for one in _schemes(quantisation)}
        yield next((bits for bits in fitting if bits in told), next((b for b in _LIKELY if b in fitting), fitting[0]))
        return
    groups = scale.shape[-1] if len(scale.shape) == len(codes.shape) else 1
    words = codes.shape[-1] * 32
    schemes = [
        (one.number("num_bits", most=32), one.number("group_size", most=_LONGEST)) for one in _schemes(quantisation)
    ]
    schemes = [(bits, size) for bits, size in schemes if bits]
    fitting = [bits for bits, size in schemes if (words // bits == groups * size if size else groups == 1)]
    yield from fitting or [bits for bits, _ in schemes] or _LIKELY


def _schemes(quantisation: QuantisationSettings) -> tuple[QuantisationSettings, ...]:
    return quantisation.sections("weights") or (quantisation,)


ENCODINGS = (
    Encoding(
        ".weight_packed", frozenset({"int32"}), (".weight_scale",), _logical,
        (".weight_shape", ".weight_zero_point", ".weight_g_idx"),
    ),
    Encoding(
        ".weight_packed", frozenset({"int32"}), (".scale_packed",), some("2:4 packed (compressed-tensors)"),
        (".meta", ".weight_shape"),
    ),
)  # fmt: skip
