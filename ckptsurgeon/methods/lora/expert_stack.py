"""A LoRA of stacked experts: two tensors with the factors of all experts of a layer (PEFT's ``target_parameters``).

A is (experts * rank, in): the factors of the experts one below the other. B is (out, rank * experts): for each rank,
the columns of all experts side by side. The weight is (experts, out, in), or (experts, in, out) as in gpt-oss.
https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py (``ParamWrapper.get_delta_weight``)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["experts_of", "fits_stack", "is_stack", "is_turned", "stack_kind", "stack_sizes"]

_KIND = re.compile(r"experts ([1-9][0-9]{0,8})( transposed)?")


def stack_kind(experts: int, *, transposed: bool) -> str:
    """Return the kind of a change of ``experts`` stacked experts, such as "experts 32" or "experts 32 transposed".

    ``transposed`` says that the weight is (experts, in, out).
    """
    return f"experts {experts} transposed" if transposed else f"experts {experts}"


def is_stack(kind: str) -> bool:
    """Return whether a kind of change is that of stacked experts."""
    return _KIND.fullmatch(kind) is not None


def experts_of(kind: str) -> int:
    """Return the number of experts in a kind of change; 1 if it is not that of stacked experts."""
    found = _KIND.fullmatch(kind)
    return int(found[1]) if found is not None else 1


def is_turned(kind: str) -> bool:
    """Return whether the weight of a change of stacked experts is (experts, in, out)."""
    return kind.endswith(" transposed")


def fits_stack(kind: str, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
    """Return whether the factors A and B, of the shapes ``inputs``, change a weight of ``shape``."""
    found = stack_sizes(kind, inputs)
    if found is None or len(shape) != 3:
        return False
    out, into, _ = found
    return tuple(shape) == (experts_of(kind), *((into, out) if is_turned(kind) else (out, into)))


def stack_sizes(kind: str, inputs: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """Return (out, in, rank) of each expert, for the shapes of A and B; None if they do not fit each other."""
    experts = experts_of(kind)
    if not is_stack(kind) or len(inputs) != 2 or any(len(one) != 2 for one in inputs):
        return None
    (all_ranks, into), (out, columns) = inputs
    return (out, into, all_ranks // experts) if all_ranks == columns > 0 and all_ranks % experts == 0 else None
