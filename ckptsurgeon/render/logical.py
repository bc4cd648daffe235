"""Shows each quantised tensor as the weight that it encodes: one tensor with shape, encoding and bits per weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..analysis.inspection import Inspection
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensor
from ..tensors.torch_quantisers import stored_bytes

__all__ = ["LogicalTensors", "logical_tensors"]


@dataclass(frozen=True)
class LogicalTensors:
    """The tensors of a checkpoint, with each quantised tensor as one tensor under the name of its weight.

    The dtype of such a tensor is the name of its encoding. ``coded`` maps its name to the quantised tensor, and to the
    total size of its parts (codes, scales, zero points) in bytes.
    """

    tensors: Mapping[str, TensorInfo]
    coded: Mapping[str, tuple[QuantisedTensor, int]]
    stored: Inspection

    def parameters(self, key: str, info: TensorInfo) -> int:
        """Return the number of parameters of a tensor, or a lower bound if ``is_counted`` is false for its key."""
        return self.coded[key][0].at_least if key in self.coded else self.stored.codes.parameters(key, info)

    def is_counted(self, key: str) -> bool:
        """Return whether the number of parameters of the tensor ``key`` is exact, and not a lower bound."""
        return self.coded[key][0].parameters is not None if key in self.coded else self.stored.codes.is_counted(key)

    def nbytes(self, key: str, info: TensorInfo) -> int:
        """Return the size of a tensor in bytes; for a quantised tensor, the sizes of all its parts together."""
        return self.coded[key][1] if key in self.coded else info.nbytes

    @property
    def tied(self) -> Collection[str]:
        """The keys of tied tensors, which are counted under another key."""
        ties = self.stored.ties
        return {*ties, *(name for name, (one, _) in self.coded.items() if one.codes in ties)} if ties else ()


def logical_tensors(
    inspection: Inspection, tensors: Mapping[str, TensorInfo], bits: Callable[[QuantisedTensor], float | None]
) -> LogicalTensors:
    """Return ``tensors`` with one tensor in place of the stored parts of each quantised tensor.

    Parts stay as they are if the shape of the quantised tensor is unknown, or if ``tensors`` lacks one of them.
    ``bits`` returns the bits per weight of a quantised tensor.
    """
    whole = {one.name: one for one in inspection.codes.tensors if _stands_alone(one, tensors)}
    first = {next(iter(one.parts.values())): one for one in whole.values()}
    parts = {key for one in whole.values() for key in one.parts.values()}
    found: dict[str, TensorInfo] = {}
    coded: dict[str, tuple[QuantisedTensor, int]] = {}
    by_form: dict[tuple[int, tuple[int, ...]], tuple[TensorInfo, int]] = {}
    for key, info in tensors.items():
        if key not in parts:
            found[key] = info
        elif (one := first.get(key)) is not None and one.shape is not None:
            form = one.form, one.shape  # the shape of a weight of bitsandbytes is not in its headers
            if form not in by_form:
                number = bits(one)
                said = f"{number:.3g} bits per weight" if number is not None else ""
                nbytes = sum(stored_bytes(tensors[part]) for part in one.keys)
                by_form[form] = TensorInfo(one.method, one.shape, opaque=said), nbytes
            found[one.name], nbytes = by_form[form]
            coded[one.name] = one, nbytes
    return LogicalTensors(found, coded, inspection)


def _stands_alone(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether ``tensors`` has all parts of a quantised tensor, and no other tensor with its name."""
    if not one.codes or one.shape is None:
        return False
    keys = one.keys
    return (one.name in keys or one.name not in tensors) and all(map(tensors.__contains__, keys))
