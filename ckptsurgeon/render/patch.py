"""Shows patches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.patch import Patch
from ..util.text import count, escape, human_bytes, listing, percent
from .columns import Hanging, next_view

__all__ = ["applied_view", "patch_view"]

FITS = 8
"""How many errors of single tensors are shown."""


def patch_view(patch: Patch, what: str, *, next_steps: Sequence[str] = ()) -> RenderableType:
    """Return a view of a patch: the old and the new checkpoint, its contents and its size.

    ``what`` is the label before the path of the patch.
    """
    line = Text(escape(patch.path), style="bold")
    part = percent(patch.nbytes / patch.new_nbytes, 1) if patch.new_nbytes else "-"
    line.append(
        f"  {human_bytes(patch.nbytes)}, {part} of the {human_bytes(patch.new_nbytes)} of new files", "not bold"
    )
    line.append(f"  {patch.elapsed_s:.1f} s" if patch.elapsed_s else "", "not bold")
    return Group(*_contents(patch), Hanging(Text(f"  {what} "), line), *next_view(next_steps))


def applied_view(patch: Patch, output: str, *, next_steps: Sequence[str] = ()) -> RenderableType:
    """Return a view of the output that a patch made at the path ``output``."""
    line = Text(escape(output), style="bold")
    line.append(f"  {human_bytes(patch.new_nbytes)}  {patch.elapsed_s:.1f} s", "not bold")
    equal = "equal to the new checkpoint that the patch was made from (SHA-256)"
    if patch.approximated:
        equal = (
            "as the patch says (SHA-256); this patch stores some changes approximately, so they differ from the new "
            "checkpoint that it was made from"
        )
    same = Hanging(Text("  bytes "), Text(equal))
    return Group(*_contents(patch), Hanging(Text("  wrote "), line), same, *next_view(next_steps))


def _contents(patch: Patch) -> list[RenderableType]:
    numbers = [(patch.equal, "equal"), (patch.changed, "changed"), (patch.added, "new")]
    tensors = ", ".join(f"{number} {word}" for number, word in numbers if number) or "none"
    return [
        Hanging(Text("  from "), Text(escape(patch.old), "bold")),
        Hanging(Text("  to "), Text(f"{escape(patch.new)}, {count(patch.files, 'file')}")),
        Hanging(Text("  tensors "), Text(tensors)),
        *_approximated(patch),
    ]


def _approximated(patch: Patch) -> list[RenderableType]:
    if not patch.approximated:
        return []
    factored = len(patch.low_rank)
    ranks = listing([str(one) for one in sorted({fit.rank for fit in patch.low_rank})])
    how = "only the signs of their changes are stored"
    if factored:
        how = f"low-rank factors of their changes are stored (rank {ranks})"
    if 0 < factored < patch.approximated:
        how = f"low-rank factors of the changes of {factored} (rank {ranks}), and the signs of the others, are stored"
    said = (
        f"{count(patch.approximated, 'tensor')}: {how}; the error is "
        f"{percent(patch.change_error, 1)} of the changes, and at most {percent(patch.weight_error, 2)} of a tensor"
    )
    return [Hanging(Text("  approximate ", "yellow"), Text(said)), *_fits(patch)]


def _fits(patch: Patch) -> list[RenderableType]:
    """Return a line with the error of each tensor that has low-rank factors, the largest error first."""
    if not patch.low_rank:
        return []
    fits = sorted(patch.low_rank, key=lambda fit: -fit.error)
    said = listing([f"{fit.key} {percent(fit.error, 1)}" for fit in fits], FITS)
    return [Hanging(Text("  errors "), Text(f"of the changes: {said}"))]
