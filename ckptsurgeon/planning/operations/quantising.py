"""The operation quantize: determines the codes and scales that are made from each matrix."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from ...errors import PlanError
from ...tensors.encoders._schemes import SCHEMES, Scheme, misfit, quantised_parts, together
from ...tensors.info import TensorInfo
from ...util.text import escape
from .operation import Operation

__all__ = ["quantised"]


def quantised(
    operation: Operation, keys: Iterable[str], tensors: Mapping[str, TensorInfo]
) -> dict[tuple[str, ...], dict[str, TensorInfo]]:
    """Return the parts (codes, scales) into which each matrix in ``keys`` is quantised.

    The result maps (key of the matrix,) to the parts: a map from the key of each part to its header.

    Tied matrices are quantised once, but each of their keys has an entry, with equal headers. Raises PlanError for a
    tensor that cannot be quantised.
    """
    scheme = SCHEMES[operation.fields["to"]]
    chosen = dict.fromkeys(keys)
    made: dict[tuple[str, ...], dict[str, TensorInfo]] = {}
    seen: dict[Hashable, dict[str, TensorInfo]] = {}
    for key in chosen:
        info = tensors[key]
        _check(operation, key, info, scheme)
        place = info.place
        parts = seen.get(place) if place is not None else None
        if parts is None:
            joined = together(key) if scheme.is_shared else ()
            others = {one: tensors[one] for one in joined if one != key and one in chosen}
            parts = seen[place] = quantised_parts(scheme, key, info, others, dtype=operation.fields["scales"])
        made[key,] = {f"{key.removesuffix('.weight')}{end}": part for end, part in parts.items()}
    return made


def _check(operation: Operation, key: str, info: TensorInfo, scheme: Scheme) -> None:
    why = misfit(info, scheme)
    if not why and not key.endswith(".weight"):
        why = "its key must end with .weight, as those of linear layers do"
    if why:
        raise PlanError(
            f"{operation}: {escape(key)} cannot be quantised: {why}.",
            hint=f"Leave the tensor as it is with --exclude {escape(key)}.",
        )
