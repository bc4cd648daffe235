"""Adds heads, channels, experts or width by repeating the old ones; makes fewer key and value heads by pooling.

If outputs of a layer are repeated, the layers that read them divide their weights by the number of copies. So the
network computes the same: HyperCloning (https://arxiv.org/abs/2409.12903) for the width, Net2Net
(https://arxiv.org/abs/1511.05641) for channels. Equal copies learn the same. So noise can be added to the weights that
read them. The noise sums to 0 over the copies: they then differ, and the network still computes the same. Keys and
values are pooled as in https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import PlanError
from ...util.text import count, escape
from .axes import Axis, taken
from .change import Change

__all__ = ["NO_NOISE", "Noise", "pooled_heads", "repeated", "widened_channels"]


class Noise(NamedTuple):
    """Noise for the weights that read copies: at most the share ``by`` of a weight (0: no noise), and the seed."""

    by: float = 0.0
    seed: int = 0

    def rows(self, axis: Axis, taken: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the operation that adds noise along an axis of inputs that the operation ``taken`` has repeated.

        There is no operation for weights with a weight norm: noise would change the norm, and so the layer's outputs.
        """
        if not self.by or axis.side != "in" or ".parametrizations." in axis.key or axis.key.endswith("weight_v"):
            return []
        where = {"of": taken["indices"], "dim": axis.dim, "block": taken["block"]}
        return [{"noise": axis.key, **where, "by": self.by, "seed": self.seed}]

    @property
    def said(self) -> str:
        """A description of the noise, for the end of the note on a change; '' without noise."""
        return f", with noise of up to {self.by:g} of a weight on the weights that read them" if self.by else ""


NO_NOISE = Noise()


def repeated(
    field: str, axes: Sequence[Axis], numbers: tuple[int, int], unit: int | None = None, noise: Noise = NO_NOISE
) -> Change:
    """Return the change that repeats each unit along each axis; if ``field`` doubles, each unit is there twice.

    ``numbers`` are the old and the new value of the field. A unit has ``unit`` elements (for the width: as many as a
    head, so that heads and width are repeated alike). Without ``unit``, an axis consists of ``numbers[0]`` units, such
    as heads or experts. Raises PlanError if a new size is not a multiple of the old one.
    """
    old, new = numbers
    times, rest = divmod(new, old)
    if rest:
        raise PlanError(
            f"{field} {new} is not a multiple of {old}, so the old elements cannot be repeated equally often.",
            hint=f"Use {old * max(times, 2)} or another multiple.",
        )
    rows = [{"scale": axis.key, "by": 1 / times} for axis in axes if axis.side == "in"]  # first, of fewer weights
    for axis in axes:
        size = unit * (3 if _has_heads_in_turn(axis, old) else 1) if unit else axis.before // old
        if axis.after != times * axis.before or axis.before % (size * axis.parts):
            raise PlanError(
                f"{field} {old} to {new} changes dimension {axis.dim} of {escape(axis.key)} from {axis.before} to "
                f"{axis.after}, which is not {times} times as much.",
            )
        units = axis.before // axis.parts // size
        rows.append(taken(axis, [(index, index + 1) for index in range(units) for _ in range(times)], size))
        rows += noise.rows(axis, rows[-1])
    return Change(f"{field} {old} to {new}: each of the {old} repeated {count(times, 'time')}{noise.said}", True, rows)


def _has_heads_in_turn(axis: Axis, width: int) -> bool:
    """Return whether an axis has the queries, keys and values of one head after the other (GPT-NeoX)."""
    return ".query_key_value." in axis.key and axis.side == "out" and axis.before == 3 * width


def widened_channels(
    field: str, axes: Sequence[Axis], numbers: tuple[int, int], way: str, noise: Noise = NO_NOISE
) -> Change:
    """Return the change to more channels of feed-forward layers; ``way`` is "copy" or "init".

    With "copy", channels are repeated, and the weights that read a channel are divided by the number of its copies.
    With "init", new channels are initialised and contribute nothing at first.
    """
    old, new = numbers
    is_normed = any(axis.kind == "norm" for axis in axes)  # BitNet normalises over the channels
    if way == "copy":
        said = f"{field} {old} to {new}: {new - old} channels are copies{noise.said} (arXiv 1511.05641)"
        return Change(said, not is_normed or new % old == 0, _copied(axes, noise))
    rows = [{"pad": axis.key, "dim": axis.dim, "size": axis.after} for axis in axes if axis.side == "in"]
    policies = {axis.key: _padded(axis) for axis in axes if axis.side == "out"}
    said = f"{field} {old} to {new}: {new - old} channels are initialised, and contribute nothing at first"
    return Change(said, not is_normed, rows, policies=policies)


def _padded(axis: Axis) -> str:
    """Return the text of the policy that adds initialised elements along ``axis``, at the end of each of its parts."""
    return f"pad:parts={axis.parts},dim={axis.dim}" if axis.parts > 1 else "pad"


def _copied(axes: Sequence[Axis], noise: Noise) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for axis in axes:
        old, new = axis.before // axis.parts // axis.block, axis.after // axis.parts // axis.block
        times, rest = divmod(new, old)
        if axis.side == "in":
            ends = [(0, rest, times + 1), (rest, old, times)]
            rows += [
                {"scale": axis.key, "by": 1 / often, "dim": axis.dim, "begin": begin, "end": end}
                for begin, end, often in ends
                if begin < end and often > 1
            ]
        runs = [(0, old)] * times + [(0, rest)] * (rest > 0)
        rows.append(taken(axis, runs, axis.block))
        rows += noise.rows(axis, rows[-1])
    return rows


def pooled_heads(field: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> Change:
    """Return the change to fewer heads of keys and values, each the mean of neighbouring old heads.

    Raises PlanError if the new number does not divide the old one, or if the heads are not along the first dimension.
    """
    old, new = numbers
    if old % new:
        raise PlanError(f"{field} {new} is not a divisor of {old}, so heads cannot be pooled evenly.")
    other = next((axis for axis in axes if axis.dim or axis.parts > 1 or axis.before * new != axis.after * old), None)
    if other is not None:
        raise PlanError(
            f"{field} changes {escape(other.key)}, which does not have its heads along the first dimension.",
            hint="Split the queries, keys and values of this tensor with --operations first.",
        )
    rows = [{"pool": axis.key, "heads": old, "to": new} for axis in axes]
    said = f"{field} {old} to {new}: each new head is the mean of {old // new} neighbours (arXiv 2305.13245)"
    return Change(said, False, rows)
