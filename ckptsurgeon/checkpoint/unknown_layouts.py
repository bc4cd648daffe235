"""Makes a note on codes that are in none of the layouts of the quantisation method in the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..tensors.encodings._encoding import QuantisedTensors
from ..tensors.encodings._methods import UNKNOWN, family
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing, shape_text

__all__ = ["unknown_layouts"]

SHOWN = 3
WHOLE = ("gptq", "awq", "fp8", "mxfp4")
"""The quantisation methods of which every layout is known."""
OTHER_LAYOUTS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
"""{method: (setting, values)}: with any other value of this setting, the method stores layouts that are not known."""


def unknown_layouts(
    path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a note on quantised tensors whose parts have other dtypes or shapes than their ``quant_method`` stores.

    No program can decode such tensors. Examples are 8-bit floats whose dtype is uint8, and transposed scales.
    """
    method = _known_method(settings)
    found = [one for one in codes.tensors if one.codes and family(one.method) == UNKNOWN] if method else []
    if found:
        first = found[0]
        parts = [f"{end} {tensors[key].dtype} {shape_text(tensors[key].shape)}" for end, key in first.parts.items()]
        names = listing([one.name for one in found], SHOWN)
        number = count(len(found), "quantised tensor")
        yield (
            f"{escape(path)}: {number} cannot be decoded, since their quant_method {escape(method)} does not store "
            f"{escape(', '.join(parts), 300)}: {names}"
        )


def _known_method(settings: Mapping[str, Any]) -> str:
    """Return the ``quant_method`` of settings if all layouts that it stores are known, '' otherwise."""
    method = str(settings.get("quant_method") or "")
    field, usual = OTHER_LAYOUTS.get(method, ("", ()))
    value = settings.get(field) if field else None
    return method if method in WHOLE and (value is None or str(value).lower() in usual) else ""
