"""The description of a patch: the old and the new checkpoint, and the number of changed tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..planning.plan.receipt import FactorFit
from ..tensors.ops.casts import raw_dtype
from ..util.notebook import InNotebooks
from ..util.text import escape, human_bytes

if TYPE_CHECKING:
    from ..engine.patch.index import PatchIndex, Segment

__all__ = ["Patch", "described"]


@dataclass(frozen=True, repr=False)
class Patch(InNotebooks):
    """A patch that was read, written or applied. Sizes are in bytes, ``elapsed_s`` is in seconds.

    ``path`` is the file that was read or written; ``old`` and ``new`` are the names of the checkpoints. ``equal``,
    ``changed`` and ``added`` are numbers of tensors of the new checkpoint: tensors that equal the old tensor bit for
    bit, changed tensors, and tensors that only the new checkpoint has. ``approximated`` is the number of changed
    tensors for which the patch stores only the signs of the changes, or low-rank factors of the changes.
    ``change_error`` is the norm of the errors of these changes, divided by the norm of the changes. ``weight_error`` is
    the largest relative error of a tensor: the norm of its errors divided by the norm of its weights. ``low_rank`` has
    the rank and the error of each tensor with low-rank factors; this error is relative to the change of the tensor.
    ``files`` is the number of new files, ``nbytes`` the size of the patch, ``new_nbytes`` the size of the new files. If
    several patches were applied, the tensors of the last patch are counted, and ``nbytes`` is the size of all patches.
    ``notes`` list parts of the model that are not in the patch, and faults of the checkpoints.
    """

    path: str
    old: str
    new: str
    equal: int
    changed: int
    added: int
    files: int
    nbytes: int
    new_nbytes: int
    elapsed_s: float = 0.0
    approximated: int = 0
    change_error: float = 0.0
    weight_error: float = 0.0
    low_rank: tuple[FactorFit, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Patch {escape(self.path)}: {escape(self.old)} to {escape(self.new)}, {human_bytes(self.nbytes)}>"

    def to_json(self) -> dict[str, Any]:
        """Return the patch as plain data."""
        return {
            "kind": "ckpt.patch",
            "version": 1,
            "path": self.path,
            "old": self.old,
            "new": self.new,
            "equal": self.equal,
            "changed": self.changed,
            "added": self.added,
            "approximated": self.approximated,
            "change_error": self.change_error,
            "weight_error": self.weight_error,
            "low_rank": [fit.to_json() for fit in self.low_rank],
            "files": self.files,
            "nbytes": self.nbytes,
            "new_nbytes": self.new_nbytes,
            "elapsed_s": round(self.elapsed_s, 3),
            "notes": list(self.notes),
        }


def described(path: str, index: PatchIndex, nbytes: int, elapsed_s: float) -> Patch:
    """Return the description of a patch, from its index. ``nbytes`` is the size of the patch file in bytes."""
    places: dict[tuple[int, int], Segment] = {}
    for number, file in enumerate(index.files):
        offsets = accumulate((segment.nbytes for segment in file.segments), initial=0)
        places |= {(number, at): segment for at, segment in zip(offsets, file.segments, strict=False)}
    segments = {key: places.get((one.file, one.offset)) for key, one in index.tensors.items()}
    kinds = ["raw" if one is None else one.kind for one in segments.values()]
    near = kinds.count("signs") + kinds.count("low_rank")
    change_error, weight_error = index.errors or (0.0, 0.0)
    return Patch(
        path=path,
        old=index.old,
        new=index.new,
        equal=kinds.count("same"),
        changed=kinds.count("xor") + near,
        added=kinds.count("raw"),
        files=len(index.files),
        nbytes=nbytes,
        new_nbytes=sum(file.size for file in index.files),
        elapsed_s=elapsed_s,
        approximated=near,
        change_error=change_error,
        weight_error=weight_error,
        low_rank=tuple(_fits(segments)),
    )


def _fits(segments: Mapping[str, Segment | None]) -> Iterator[FactorFit]:
    """Yield the error of each tensor whose segment has low-rank factors; ``segments`` maps keys to segments."""
    for key, segment in segments.items():
        if segment is not None and (low := segment.low_rank) is not None:
            rows = segment.nbytes // low.columns // raw_dtype(low.dtype).itemsize
            yield FactorFit(key, (rows, low.columns), low.rank, low.error)
