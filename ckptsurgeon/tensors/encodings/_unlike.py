"""Weights of a quantised model that are stored unlike the others: plainly, twice, or with parts that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..dtypes import DTYPES
from ..info import TensorInfo
from ._encoding import CodedTensor, Codes
from ._methods import KNOWN, family
from ._modules import Modules, module_of
from ._settings import QuantisationSettings, Settings

__all__ = ["plain_among_codes", "stored_twice", "unfit_parts"]

WHOLE = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4")
"""Methods that quantise all modules of a kind but for those that settings leave out."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
UNKNOWN = "an"
"""Family of codes of which no encoding is known."""


def plain_among_codes(codes: Codes, tensors: Mapping[str, TensorInfo], settings: Settings) -> list[str]:
    """Return the plain weights that settings do not leave out, of modules that other layers have as codes."""
    method = QuantisationSettings(settings).method
    if method not in WHOLE or (method == "compressed-tensors" and _targets(settings) - {"Linear"}):
        return []
    forms = {_NUMBER.sub("#", one.name) for one in codes.tensors if one.codes}
    modules, named = Modules(settings), {one.name for one in codes.tensors}
    return [
        key
        for key, info in tensors.items()
        if key not in codes.by_key and key not in named and _is_number(info)
        and _NUMBER.sub("#", key) in forms and not modules.left_out(module_of(key))
    ]  # fmt: skip


def _targets(settings: Settings) -> set[str]:
    """Return what groups of compressed-tensors are of."""
    groups = settings.get("config_groups")
    found = [one.get("targets") for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    return {target for one in found if isinstance(one, list) for target in one if isinstance(target, str)}


def _is_number(info: TensorInfo) -> bool:
    dtype = DTYPES[info.dtype]
    return len(info.shape) > 1 and dtype.kind == "float" and dtype.bits > 8


def stored_twice(codes: Codes, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the weights that are there as codes and plainly, under the name that they have where they are plain."""
    return [
        one.name
        for one in codes.tensors
        if one.codes and one.name not in one.keys and one.name in tensors and one.name not in codes.by_key
        and _is_number(tensors[one.name])
    ]  # fmt: skip


def unfit_parts(codes: Codes, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """Yield each part that has another shape than codes and scales ask for, and the name of its quantised tensor.

    Codes of an unknown encoding are those of a known one if others of the same name are.
    """
    known = {_leaf(one): one.method for one in codes.tensors if family(one.method) in KNOWN and one.codes}
    for one in codes.tensors:
        kind = family(one.method)
        if kind in ("AWQ", "GPTQ") and {".qzeros", ".scales", ".qweight"} <= one.parts.keys():
            if not _fits(kind, *(tensors[one.parts[end]].shape for end in (".qweight", ".scales", ".qzeros"))):
                yield "qzeros", one.name
        elif kind == UNKNOWN and one.codes and len(one.parts) > 1 and family(known.get(_leaf(one), "")) in ALIKE:
            yield "parts", one.codes


MOST_BITS = 8
ALIKE = ("mxfp4", "nvfp4", "GPTQ", "AWQ")
"""Encodings whose parts have no other shapes."""


def _leaf(one: CodedTensor) -> str:
    return one.codes.rpartition(".")[2]


def _fits(kind: str, codes: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]) -> bool:
    """Whether zero points, packed into words of 32 bits, are as many as scales."""
    if len(scales) != 2 or len(zeros) != 2 or not all((*codes, *scales, *zeros)) or (scales[0] == codes[0]):
        return True
    are_wide = 1 < zeros[1] * 32 / scales[1] <= MOST_BITS if kind == "GPTQ" else zeros[1] == codes[1]
    return zeros[0] == scales[0] and are_wide
