"""The errors for tensors whose values are not plain bytes, such as sparse ones and torch's own quantised tensors."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import FormatError, PlanError
from ..tensors.info import TensorInfo
from ..tensors.torch_quantisers import OWN_PICKLE, PACKED, codes_of, is_pickled
from ..util.text import escape
from .quantised_error import QuantisedError, dequantise

__all__ = ["is_uncopied", "opaque_error"]


def is_uncopied(info: TensorInfo) -> bool:
    """Return whether ckpt cannot copy a tensor: its values are not plain bytes, and torch did not quantise it."""
    return bool(info.opaque) and codes_of(info) is None


def opaque_error(
    key: str, name: str, info: TensorInfo, what: str, *, verb: str, leave: str = "", details: Sequence[str] = ()
) -> FormatError | PlanError:
    """Return the error for the tensor ``key`` of the checkpoint ``name``.

    ``what`` is a phrase such as "cannot be copied". ``leave`` is a hint on how to leave the tensor out. If torch or
    torchao quantised the tensor, the error is a PlanError, as for other quantised tensors. Its hint then says how to
    decode the tensor for the command ``verb``. For a tensor inside packed weights, the error is a PlanError, too.
    Otherwise it is a FormatError.
    """
    said = f"the tensor {escape(key)} of {escape(name)} {what}: {info.opaque}"
    other = f" Or {leave[0].lower()}{leave[1:]}" if leave else ""
    if info.opaque == PACKED:
        hint = f"Take the weights from before the network was quantised.{other}"
        return PlanError(f"{said}.", hint=hint, details=details)
    if info.opaque == OWN_PICKLE:
        return PlanError(f"{said}.", hint=f"Save the network's state_dict() instead.{other}", details=details)
    if not is_pickled(info):
        return FormatError(f"{said}.", hint=leave, details=details, rule="opaque")
    why = (
        "cannot write it, as its scale is in the pickle, not in a tensor"
        if is_uncopied(info)
        else "can only copy it as it is"
    )
    return QuantisedError(
        f"{said}, and ckpt {why}.",
        hint=f"{dequantise(verb)}.{other}",
        details=details,
    )
