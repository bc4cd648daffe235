"""Finds plain weights with scales beside them that decode codes, such as those of codes that were replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..info import TensorInfo
from ._agreement import stores_codes
from ._encoding import QuantisedTensor, QuantisedTensors
from ._methods import family
from ._modules import Modules, module_of
from ._settings import Settings
from ._unlike import is_number

__all__ = ["plain_with_scales"]

_DECODING = (
    "_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale", ".weight_descale", ".scale_weight",
    ".qscale_weight", ".scales", ".qzeros", ".absmax", ".SCB", "_scales",
)  # fmt: skip
"""Endings of parts that decode codes and that no plain weight needs; not the scales of activations."""


def plain_with_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each weight that is plain though the tensors that decode codes are beside it, and these tensors' endings.

    Weights that the settings leave unquantised are not among them, since a loader takes them as they are. Nor are
    models of methods that may store plain weights with scales (those trained with simulated quantisation), unless
    other weights are codes.
    """
    if not settings or not (
        _is_of_codes(settings) or any(one.codes and _is_coded(one, tensors) for one in codes.tensors)
    ):
        return
    modules = Modules(settings)
    for one in codes.tensors:
        if _is_coded(one, tensors) or not _is_plain(one, tensors) or modules.left_out(module_of(one.name)):
            continue
        ends = tuple(end.removeprefix(".weight.").lstrip("._") for end in one.parts if end.endswith(_DECODING))
        if ends:
            yield one.name, ends


def _is_of_codes(settings: Settings) -> bool:
    """Return whether all weights beside scales are codes by the settings."""
    method = stores_codes(settings)
    if method == "compressed-tensors":
        return settings.get("quantization_status") in (None, "compressed")
    return bool(method) or ("quant_method" not in settings and {"bits", "group_size"} <= settings.keys())


def _is_coded(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether there are codes; bitsandbytes' may be floats, which are then words in one column or row."""
    if not one.codes:
        return False
    if family(one.method) != "bitsandbytes":
        return True
    info = tensors[one.codes]
    return not is_number(info) or 1 in info.shape


def _is_plain(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    return one.name in tensors and is_number(tensors[one.name])
