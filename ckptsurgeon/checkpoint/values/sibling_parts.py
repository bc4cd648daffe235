"""Finds parts of quantised weights that differ although the weights have the same inputs, as q, k and v do.

GPTQ sorts the columns of a weight by the inputs of its layer, so q_proj, k_proj and v_proj of a layer get the same
order (``g_idx``). Programs that write nvfp4 give the three weights one global scale, because runtimes use one for all
three.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from .samples import Read

__all__ = ["odd_sibling_parts"]

PARTS = (".g_idx", ".weight_g_idx", ".weight_global_scale", ".weight_scale_2")
SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("wq", "wk", "wv"), ("w1", "w3"),
    ("query", "key", "value"),
)  # fmt: skip
"""Names of modules that have the same inputs."""
TENSORS, BYTES = 2000, 8 << 20
"""Approximate limits on the tensors that are read for each kind of part, spread over the model, and on their bytes."""
APART = 1 / 16
"""Parts count as different if more than this share of their 32-bit words differ: a few columns may be swapped."""
FEWEST, MOSTLY = 3, 3 / 4
"""The parts must be equal in at least ``FEWEST`` layers, and in at least the share ``MOSTLY`` of all layers."""
UNLIKE = (
    "a {part} that differs from that of {others}, which have the same inputs, although they have the same "
    "{part} in {number} other modules: perhaps it was changed, or belongs to another layer"
)


def odd_sibling_parts(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each tensor with a part that differs from the same part of its siblings.

    Siblings are the weights of one layer that have the same inputs. The text follows "has" in a note: it says what the
    weight has. ``read`` returns the bytes of a small tensor.
    """
    for part in PARTS:
        found: dict[tuple[tuple[str, ...], str], dict[str, tuple[str, TensorInfo]]] = {}
        for one in codes.tensors:
            if part in one.parts and (info := tensors[one.parts[part]]).is_plain:
                above, _, leaf = one.parts[part].removesuffix(part).rpartition(".")
                for names in SIBLINGS if info.numel else ():
                    if leaf in names:
                        found.setdefault((names, above), {})[leaf] = (one.name, info)
        for names in SIBLINGS:
            groups = [group for (own, _), group in found.items() if own == names and len(group) == len(names)]
            yield from _unlike(part, names, groups, read)


def _unlike(
    part: str, names: Sequence[str], groups: Sequence[Mapping[str, tuple[str, TensorInfo]]], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text), as ``odd_sibling_parts`` does, for one kind of part and one list of siblings.

    ``part`` is the ending of the part's key, and ``names`` are the names of the sibling modules. Each group has the
    siblings of one layer: {name of the module: (name of the weight, its part)}. Nothing is yielded unless the parts are
    equal within most groups.
    """
    if len(groups) <= FEWEST:
        return
    size = sum(info.nbytes for group in groups for _, info in group.values())
    step = max(len(groups) * len(groups[0]) // TENSORS, size // BYTES) + 1
    read_ones = [{leaf: (name, read(info)) for leaf, (name, info) in group.items()} for group in groups[::step]]
    known = [group for group in read_ones if all(data for _, data in group.values())]
    odd = [group for group in known if _differ(*(data for _, data in group.values()))]
    number = len(known) - len(odd)
    if number < max(FEWEST, MOSTLY * len(known)):
        return
    for group in odd:
        values = [data for _, data in group.values()]
        usual = next((data for data in values if values.count(data) > 1), b"")
        for leaf, (name, data) in group.items():
            if not usual or _differ(data, usual):
                others = " and ".join(other for other in names if other != leaf)
                yield name, UNLIKE.format(part=part[1:], others=others, number=number)


def _differ(first: bytes, *others: bytes) -> bool:
    """Return whether one of the ``others`` differs from ``first`` in length or in many of its 32-bit words."""
    words = memoryview(first).cast("I") if len(first) % 4 == 0 else ()
    for data in others:
        if data == first:
            continue
        if len(data) != len(first) or not words:
            return True
        if sum(map(operator.ne, words, memoryview(data).cast("I"))) > APART * len(words):
            return True
    return False
