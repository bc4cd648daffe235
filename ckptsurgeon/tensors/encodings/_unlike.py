"""Finds weights of a quantised model that are stored unlike the others: plainly, twice, or with unfit shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..dtypes import DTYPES
from ..info import TensorInfo
from ._encoding import QuantisedTensor, QuantisedTensors
from ._methods import KNOWN, family
from ._modules import Modules, module_of
from ._settings import QuantisationSettings, Settings

__all__ = ["is_number", "plain_among_codes", "stored_twice", "unfit_parts"]

WHOLE = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4")
"""Methods that quantise all modules of a kind except those that the settings exclude."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
UNKNOWN = "an"
"""The family name of quantised weights with an unknown encoding."""


def plain_among_codes(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> list[str]:
    """Return the plain weights of modules that are quantised in other layers and that no setting excludes."""
    method = QuantisationSettings(settings).method
    if method not in WHOLE or (method == "compressed-tensors" and _targets(settings) - {"Linear"}):
        return []
    forms = {_NUMBER.sub("#", one.name) for one in codes.tensors if one.codes}
    modules, named = Modules(settings), {one.name for one in codes.tensors}
    return [
        key
        for key, info in tensors.items()
        if key not in codes.by_key and key not in named and is_number(info)
        and _NUMBER.sub("#", key) in forms and not modules.left_out(module_of(key))
    ]  # fmt: skip


def _targets(settings: Settings) -> set[str]:
    """Return the targets of the config groups of compressed-tensors."""
    groups = settings.get("config_groups")
    found = [one.get("targets") for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    return {target for one in found if isinstance(one, list) for target in one if isinstance(target, str)}


def is_number(info: TensorInfo) -> bool:
    dtype = DTYPES[info.dtype]
    return len(info.shape) > 1 and dtype.kind == "float" and dtype.bits > 8


def stored_twice(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the weights that are stored both quantised and plain, by the key of the plain tensor."""
    return [
        one.name
        for one in codes.tensors
        if one.codes and one.name not in one.keys and one.name in tensors and one.name not in codes.by_key
        and is_number(tensors[one.name])
    ]  # fmt: skip


def unfit_parts(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """Yield each part whose shape does not fit the codes and scales, with the name of its quantised tensor.

    A tensor of an unknown encoding counts as one of a known encoding if others with the same name are of it.
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
"""Families of encodings whose parts can only have one shape."""


def _leaf(one: QuantisedTensor) -> str:
    return one.codes.rpartition(".")[2]


def _fits(kind: str, codes: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]) -> bool:
    """Whether there are as many zero points, packed into words of 32 bits, as scales."""
    if len(scales) != 2 or len(zeros) != 2 or not all((*codes, *scales, *zeros)) or (scales[0] == codes[0]):
        return True
    are_wide = 1 < zeros[1] * 32 / scales[1] <= MOST_BITS if kind == "GPTQ" else zeros[1] == codes[1]
    return zeros[0] == scales[0] and are_wide
