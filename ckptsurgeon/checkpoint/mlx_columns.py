"""Finds MLX weights whose settings imply another number of columns than the same weights have in other layers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ..tensors.quantised.methods import family
from ..util.note_kind import NoteKind
from ..util.notes import notes_of
from ..util.text import NUMBER_IN_KEY, count, escape, listing

__all__ = ["of_other_columns"]

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (16, 32, 64, 128)
"""The numbers of bits, and the group sizes, that MLX supports."""
MOSTLY, FEWEST = 2 / 3, 3
"""A number of columns is usual if at least the share ``MOSTLY`` of the layers, and ``FEWEST`` - 1 layers, have it."""
BEFORE = {".down_proj.": ".up_proj.", ".o_proj.": ".q_proj."}
"""{part of a weight's name: part of the name of the weight that feeds it}: the outputs of up_proj go into down_proj."""
SHOWN = 3


@notes_of(NoteKind.QUANTISATION)
def of_other_columns(path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield a note if the settings of a module (bits, group_size) contradict its codes.

    The number of columns of a weight is computed from its settings: 8 bits in groups of 32 give half as many columns as
    4 bits in groups of 64. If the same weight of other layers has another number of columns, the settings are probably
    wrong. There is a note only if some other bits and group size would give exactly that usual number.
    """
    roles: dict[str, list[QuantisedTensor]] = defaultdict(list)
    for one in codes.tensors:
        if one.shape and one.codes and family(one.method) == "MLX" and ".scales" in one.parts:
            roles[NUMBER_IN_KEY.sub("#", one.name)].append(one)
    names = {one.name: one for one in codes.tensors} if roles else {}
    found: dict[tuple[int, int], list[str]] = {}
    for some in roles.values():
        usual, number = Counter(_columns(one) for one in some).most_common(1)[0]
        if number < max(FEWEST - 1, MOSTLY * len(some)):
            continue
        for one in some:
            if _columns(one) != usual and _may_have(one, tensors, usual) and not _fits_the_layer(one, names):
                found.setdefault((_columns(one), usual), []).append(one.name)
    for (columns, usual), some_names in found.items():
        have = f"{count(len(some_names), 'quantised tensor')} would have {columns} columns"
        yield (
            f"{escape(path)}: with its quantization_config, {have}, but in other layers the same tensor has {usual}; "
            f"perhaps these tensors have other bits and another group_size than it says: {listing(some_names, SHOWN)}"
        )


def _columns(one: QuantisedTensor) -> int:
    return one.shape[-1] if one.shape else 0


def _may_have(one: QuantisedTensor, tensors: Mapping[str, TensorInfo], columns: int) -> bool:
    """Return whether the tensor ``one`` would have ``columns`` columns with other settings that MLX allows.

    Settings are a number of bits and a group size.
    """
    words, groups = (tensors[one.parts[end]].shape[-1] for end in (".weight", ".scales"))
    return any(bits * columns == words * 32 for bits in BITS) and any(size * groups == columns for size in GROUPS)


def _fits_the_layer(one: QuantisedTensor, names: Mapping[str, QuantisedTensor]) -> bool:
    """Return whether the weight that feeds ``one`` has as many outputs as ``one`` has columns.

    For example, ``up_proj`` feeds ``down_proj`` (see ``BEFORE``). If the sizes are equal, the settings of ``one`` are
    right, and its layer is wider or narrower than others. ``names`` is {name: quantised tensor}.
    """
    before = [names.get(one.name.replace(part, other)) for part, other in BEFORE.items() if part in one.name]
    return any(other is not None and other.shape and other.shape[-2] == _columns(one) for other in before)
