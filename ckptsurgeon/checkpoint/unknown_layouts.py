"""Makes notes on codes and scales whose layout does not belong to the quantisation method in the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.methods import UNKNOWN, family
from ..tensors.quantised.settings import stated_by
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing, shape_text

__all__ = ["unknown_layouts"]

SHOWN = 3
WHOLE = ("gptq", "awq", "fp8", "mxfp4")
"""The quantisation methods whose layouts are all known to this package."""
OTHER_LAYOUTS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
"""{method: (setting, values)}: if the setting has another value, the method may store unknown layouts."""
EXPONENTS = ("uint8", "float8_e8m0fnu")
"""The dtypes of scales that are stored as exponents."""
STORED_AS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mxfp4-pack-quantized": {".weight_packed": ("uint8",), ".weight_scale": EXPONENTS},
    "mxfp8-quantized": {".weight": ("float8_e4m3fn", "float8_e5m2"), ".weight_scale": EXPONENTS},
    "nvfp4-pack-quantized": {".weight_packed": ("uint8",), ".weight_scale": ("float8_e4m3fn",)},
    "int-quantized": {".weight": ("int8",)},
    "pack-quantized": {".weight_packed": ("int32",)},
}
"""{format of compressed-tensors: {ending of a key: dtypes in which the format stores this part}}.

https://github.com/vllm-project/compressed-tensors/tree/main/src/compressed_tensors/compressors
"""


@notes_of(NoteKind.QUANTISATION)
def unknown_layouts(
    path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield notes on quantised tensors whose parts have other dtypes or shapes than their ``quant_method`` stores.

    Examples are 8-bit floats whose dtype is uint8, and transposed scales.
    """
    yield from _other_dtypes(path, codes, tensors, settings)
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


def _other_dtypes(
    path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> Iterator[Note]:
    """Yield a note for each part (such as a scale) that has a dtype in which the settings' ``format`` never stores it.

    The ``format`` is one of compressed-tensors. If it stores scales as exponents, there is a note on every scale of
    another dtype: compressed-tensors computes 2**(number - 127) from such a scale, whatever its dtype. For other parts,
    such as scales of nvfp4 in bfloat16, there is a note only if ckpt cannot decode the tensor: loaders may convert
    their values.
    """
    stated = stated_by(settings)
    formats = list(dict.fromkeys(scheme.format for scheme in stated.schemes))
    if stated.method != "compressed-tensors" or len(formats) != 1 or formats[0] not in STORED_AS:
        return
    found: dict[tuple[str, str], list[str]] = {}
    for one in codes.tensors:
        for end, dtypes in STORED_AS[formats[0]].items() if one.codes else ():
            dtype = tensors[one.parts[end]].dtype if end in one.parts else dtypes[0]
            if dtype not in dtypes and (dtypes == EXPONENTS or family(one.method) == UNKNOWN):
                found.setdefault((end, dtype), []).append(one.name)
    for (end, dtype), names in found.items():
        dtypes = STORED_AS[formats[0]][end]
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'} {end[1:]} in {dtype}"
        what = f"{dtypes[0]} exponents: loaders take these numbers for exponents"
        if dtypes != EXPONENTS:
            what = f"{dtypes[0]}: ckpt cannot decode them, and a loader can do so only if it copies the values"
        kind = NoteKind.BROKEN_CODES if dtypes == EXPONENTS else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {has}, but the format {formats[0]} has {what}: {listing(names, SHOWN)}")


def _known_method(settings: Mapping[str, Any]) -> str:
    """Return the ``quant_method`` of settings if all layouts that it stores are known, '' otherwise."""
    method = str(settings.get("quant_method") or "")
    field, usual = OTHER_LAYOUTS.get(method, ("", ()))
    value = settings.get(field) if field else None
    return method if method in WHOLE and (value is None or str(value).lower() in usual) else ""
