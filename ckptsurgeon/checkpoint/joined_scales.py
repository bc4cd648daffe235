"""Reads the scales of 8-bit experts that transformers 5 saves in one tensor for all experts of a layer.

If transformers quantises a model itself (``FineGrainedFP8Config``), it saves codes for single experts
(``experts.0.gate_proj.weight``), but scales for all experts together: ``experts.gate_up_proj_scale_inv`` (experts,
blocks of rows of gate and then of up, blocks of columns). The published models have a ``weight_scale_inv`` next to the
codes of each expert, and transformers loads both forms.
https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/finegrained_fp8.py
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import notes_of
from ..util.text import count, listing

__all__ = ["ENDS", "NOTHING_JOINED", "JoinedScales", "apart", "scales_elsewhere"]

OWN = "weight_scale_inv"
"""The name of the scales of one expert's matrix, in the module of its ``weight``."""
PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "experts.gate_up_proj_scale_inv": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "experts.up_proj_scale_inv": (("up_proj",),),
    "experts.down_proj_scale_inv": (("down_proj",), ("w2",), ("fc2",)),
}
"""{end of a key of joined scales: possible names of the matrices of one expert, in the order of their rows}."""
ENDS = tuple(PARTS)
"""The ends of the keys of joined scales."""
ENDS_OF = {
    name: tuple(end for end, possible in PARTS.items() if any(name in names for names in possible))
    for possible in PARTS.values() for names in possible for name in names
}  # fmt: skip
"""{name of a matrix: ends of the keys of joined scales that may have its scales}."""
SHOWN = 2


@dataclass(frozen=True)
class JoinedScales:
    """Tensors that join the scales of all experts of a layer, and are read as one tensor for each expert.

    ``keys`` are the keys of the joined tensors. ``unread`` are the keys of single experts' scales that cannot be read,
    because one scale of the joined tensor is for rows of two matrices.
    """

    keys: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @notes_of(NoteKind.REMARK)
    def notes(self) -> Iterator[str]:
        """Yield a note that says how the joined scales are read, and where they would be lost."""
        yield (
            f"{count(len(self.keys), 'tensor')} of joined scales {'is' if len(self.keys) == 1 else 'are'} read, "
            f"and written, as a {OWN} of each expert, since transformers loses joined scales if it decodes the "
            f"model (on a CPU): {listing(self.keys, SHOWN)}"
        )


NOTHING_JOINED = JoinedScales()


def apart(tensors: Mapping[str, TensorInfo]) -> tuple[Mapping[str, TensorInfo], JoinedScales]:
    """Return the tensors, with separate scales for each matrix of an expert, and the joined scales that were split.

    Scales stay joined if no matrix of their experts is among the tensors, if a matrix has scales of its own, or if a
    block has rows of two matrices.
    """
    left = len(tensors)  # an untrusted shape may say more experts than there are tensors
    found: dict[str, dict[str, TensorInfo]] = {}
    unread: list[str] = []
    for key in (key for key in tensors if key.endswith(ENDS)):
        experts = tensors[key].shape[0] if len(tensors[key].shape) == 3 else 0
        if 0 < experts <= left:
            left -= experts
            parts = _parts(key, tensors)
            if parts and all(info is not None for info in parts.values()):
                found[key] = {name: info for name, info in parts.items() if info is not None}
            else:
                unread += parts
    if not found:
        return tensors, JoinedScales(unread=tuple(unread)) if unread else NOTHING_JOINED
    shown: dict[str, TensorInfo] = {}
    for key, info in tensors.items():
        shown.update(found.get(key) or {key: info})
    return shown, JoinedScales(tuple(found), tuple(unread))


def _parts(key: str, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo | None]:
    """Return {key: scales of one matrix} for the matrices whose scales are in the tensor ``key``; {} if there is none.

    The value is None if a block has rows of two matrices.
    """
    info, stem = tensors[key], key[: key.rindex("experts.") + len("experts.")]
    experts, rows, columns = info.shape
    names = _names(key, stem, experts, tensors)
    is_shared = rows == 1  # one scale, or one row of blocks, for gate and up together
    fit = is_shared or _is_separable(rows, names, (tensors.get(f"{stem}0.{name}.weight") for name in names))
    height = 1 if is_shared else rows // max(len(names), 1)
    found: dict[str, TensorInfo | None] = {}
    for expert in range(experts) if info.is_plain and names else ():
        for place, name in enumerate(names):
            begin = (expert * rows + (0 if is_shared else place * height)) * columns * info.itemsize
            part = replace(info, shape=(height, columns), offset=info.offset + begin) if fit else None
            found[f"{stem}{expert}.{name}.{OWN}"] = part
    return found if found.keys().isdisjoint(tensors) else {}


def _is_separable(rows: int, names: Sequence[str], weights: Iterable[TensorInfo | None]) -> bool:
    """Return whether each block of scales belongs to only one of the matrices ``names``.

    ``rows`` is the number of rows of blocks of all these matrices together. ``weights`` are the matrices of one expert,
    None if they are in another shard. If there are several matrices, the height of a block must be a power of two: it
    is the number of rows of a matrix divided by its number of rows of blocks.
    """
    if not names or rows % len(names):
        return False
    heights = (one.shape[0] / (rows // len(names)) for one in weights if one is not None and len(one.shape) == 2)
    return len(names) == 1 or all(height.is_integer() and int(height).bit_count() == 1 for height in heights)


def _names(key: str, stem: str, experts: int, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Return the names of the matrices of an expert, in the order of their rows; () if none is among the tensors."""
    possible = next(names for end, names in PARTS.items() if key.endswith(end))
    for names in possible:
        for expert in range(experts):
            found = [tensors.get(f"{stem}{expert}.{name}.weight") for name in names]
            if any(one is not None and len(one.shape) == 2 for one in found):
                return names
    return ()


def scales_elsewhere(keys: Collection[str], elsewhere: Sequence[str]) -> Sequence[str]:
    """Return ``elsewhere``, the keys of the other shards, with further keys for scales that are joined in these shards.

    ``keys`` are the keys of this shard. The scales of an expert in this shard may be joined in another shard. Then the
    key that separate scales would have is added.
    """
    joined = {key for key in elsewhere if key.endswith(ENDS)}
    found = []
    for key in keys if joined else ():
        module, _, leaf = key.rpartition(".")
        above, _, name = module.rpartition(".")
        stem, _, expert = above.rpartition(".")
        if leaf == "weight" and expert.isdecimal() and f".{stem}".endswith(".experts"):
            ends = (f"{stem.removesuffix('experts')}{end}" for end in ENDS_OF.get(name, ()))
            found += [f"{module}.{OWN}"] if any(end in joined for end in ends) else []
    return (*elsewhere, *found) if found else elsewhere
