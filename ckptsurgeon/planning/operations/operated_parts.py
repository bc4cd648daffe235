"""Follows the stored parts of quantised tensors (codes, scales and so on) through operations."""

from __future__ import annotations

from collections.abc import Mapping

from ...tensors.composition import is_decoded
from ...tensors.dtypes import BLOCKS
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ...util.text import escape
from ..quantised_error import QuantisedError
from .operation import QUANTISED_NOW
from .perform import DerivedSource

__all__ = ["operated_parts"]


def operated_parts(
    source: Mapping[str, TensorInfo], codes: QuantisedTensors, derived: DerivedSource
) -> dict[str, QuantisedTensor]:
    """Return {key: quantised tensor} for quantised tensors with a part that operations copied, changed or used.

    ``source`` has the stored tensors and ``codes`` its quantised tensors; ``derived`` are the tensors after the
    operations. The map has the key of each tensor that an operation made from a part, and the keys of all parts of
    the same quantised tensor that no operation changed. Decoded weights are not in the map, nor blocks of GGUF, which
    contain their own scales.

    Raises QuantisedError if an operation quantised a part.
    """
    found: dict[str, QuantisedTensor] = {}
    for key, by in derived.by.items() if codes else ():
        for part in by.of:
            coded = codes.by_key.get(part)
            if coded is not None and source[part].dtype not in BLOCKS and not is_decoded(derived.tensors[key]):
                if by.operation.startswith(QUANTISED_NOW):
                    raise QuantisedError(
                        f"{by.operation}: {escape(part)} is a part of the tensor {escape(coded.name)}, which is "
                        f"quantised ({coded.method}): rounding this part would change the weights that the codes "
                        "represent.",
                        hint="Leave the tensor out, or decode it in an earlier operation: - dequantize: "
                        f"{escape(coded.name)}.",
                    )
                found.setdefault(key, coded)
    for coded in {id(one): one for one in found.values()}.values():
        for part in coded.keys:
            if derived.tensors.get(part) is source[part]:
                found[part] = coded
    return found
