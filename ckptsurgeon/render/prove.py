"""Shows a proof: the verdict on whether two networks compute the same, and the blocks in which they differ.

A block drifts if its outputs in the two networks differ by more than rounding explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.prove.barrier import BarrierPoint, LossBarrier
from ..analysis.prove.change_text import NOT_FINITE, change_text, error_text, share_text
from ..analysis.prove.proof import (
    DIFFERENT,
    EQUIVALENT,
    SAME,
    BlockResult,
    Proof,
    ProvedNetwork,
)
from ..util.text import count, escape, human_count, listing
from .columns import Columns, Hanging

__all__ = ["barrier_view", "proof_view"]

COLOURS = {SAME: "green", EQUIVALENT: "green", DIFFERENT: "red"}
AROUND = 3
"""The number of blocks that are shown after the first block that drifts."""
SPREAD = 10
"""The largest number of evenly spaced blocks that are shown if no block drifts."""
SHOWN = 8


def proof_view(proof: Proof, *, every: bool = False) -> RenderableType:
    """Return the verdict, the networks, the first block that drifts and its tensors; with ``every``, all blocks."""
    head = Hanging(Text(f"{proof.verdict}  ", f"bold {COLOURS[proof.verdict]}"), _why(proof))
    width = max(cell_len(escape(one.path)) for one in (proof.first, proof.second))
    networks = Columns(
        [
            _network("A", proof.first, width),
            _network("B", proof.second, width),
            ["inputs", escape(proof.inputs, 300)],
        ]
    )
    return Group(head, Text(), networks, *_blocks(proof, every), *_changed(proof), *_unseen(proof), *_unused(proof))


def _why(proof: Proof) -> str:
    blocks = count(len({one.name for one in proof.blocks}), "block")
    if proof.verdict == SAME:
        apart = f"; {count(proof.differing, 'tensor differs', 'tensors differ')} without effect"
        agree = f"the outputs of the networks, and of {blocks} in them, agree bit for bit"
        all_weights = (
            "all weights" if proof.first.parameters == proof.second.parameters else "the weights that both have"
        )
        return f"{agree}{apart if proof.differing else f', and so do {all_weights}'}"
    drift, output = proof.drift, proof.output
    if proof.verdict == EQUIVALENT:
        allowed = share_text(output.allowed)
        return f"{_apart(output)}; rounding explains up to {allowed}{_predicted(proof)}{_between(proof)}"
    if drift is None:
        return "some weights differ, but these inputs do not use these weights, so the effect is not known"
    where = f"from {escape(drift.name)} on" if drift.name else "only in the output"
    if not drift.distance.is_finite:
        return f"the networks drift {where}: values there are {NOT_FINITE} of the two{_predicted(proof)}"
    return (
        f"the networks drift {where}: they are {share_text(drift.distance.error)} apart there, but rounding explains "
        f"only {share_text(drift.allowed)}; {_apart(output)}{_predicted(proof)}"
    )


def _apart(output: BlockResult) -> str:
    """Return a text on how far outputs differ: the relative error, and the largest difference of a single value."""
    found = output.distance
    if not found.is_finite:
        return f"values of the outputs are {NOT_FINITE} of the two"
    return f"the outputs are {share_text(found.error)} apart, a single value by at most {found.largest:.2g}"


def _between(proof: Proof) -> str:
    """Return a text on blocks that drift without an effect on the output of the network; '' if there are none."""
    inside = next((one.name for one in proof.blocks if one.drifts), "")
    return (
        f"; inside the network, blocks from {escape(inside)} on differ by more than rounding explains, but the "
        "outputs do not"
        if inside
        else ""
    )


def _predicted(proof: Proof) -> str:
    seen = proof.prediction
    if seen is None or proof.verdict == SAME:
        return ""
    if math.isnan(seen.divergence):
        return "; the most likely answers cannot be compared"
    same = round(seen.agreement * seen.places)
    return f"; the most likely answer is the same at {same} of {seen.places} positions, KL {seen.divergence:.2g} nats"


def _network(letter: str, one: ProvedNetwork, width: int) -> list[str | Text]:
    path = set_cell_size(escape(one.path), width)
    kind = f"{escape(one.kind)}, {human_count(one.parameters)} parameters, {escape(', '.join(one.dtypes))}"
    return [letter, f"{path}  {kind}"]


def _blocks(proof: Proof, every: bool) -> Iterator[RenderableType]:
    if proof.verdict == SAME and not every:
        return
    rows = [*proof.blocks, proof.output]
    shown = rows if every else _interesting(rows, proof.drift)
    if not shown:
        return
    yield Text()
    names: list[list[str | Text]] = [[Text(name, "dim") for name in ("block", "error", "allowed", "cosine")]]
    yield Columns([*names, *map(_row, shown)], right=(1, 2, 3))
    left = [one for one in rows if one not in shown]
    if left:
        yield Text(f"  and {len(left)} more{_kinds(left)} (-v shows all)", "dim")


def _kinds(rows: Sequence[BlockResult]) -> str:
    """Return a text with the number of blocks that drift and are not shown; '' if there are none."""
    drifting = sum(one.drifts for one in rows)
    differ = "differs" if drifting == 1 else "differ"
    return f", {drifting} of which {differ} by more than rounding explains" if drifting else ""


def _interesting(rows: Sequence[BlockResult], drift: BlockResult | None) -> list[BlockResult]:
    """Return the blocks to show: the first block that drifts (``drift``), its neighbours, and the output.

    The neighbours are the block before it and ``AROUND`` blocks after it. If ``drift`` is None, the result is up to
    ``SPREAD`` evenly spaced blocks, the block whose difference is nearest to its limit, and the output.
    """
    if drift is None:
        worst = max(rows, key=lambda one: one.distance.error / (one.allowed or 1))
        step = -(-len(rows) // SPREAD)
        return [one for at, one in enumerate(rows) if at % step == 0 or one is worst or one is rows[-1]]
    place = rows.index(drift)
    chosen = [*rows[max(0, place - 1) : place + 1 + AROUND], rows[-1]]
    return list({id(one): one for one in chosen}.values())


def _row(one: BlockResult) -> list[str | Text]:
    name = escape(one.name) or "output"
    called = f" (call {one.call + 1})" if one.call else ""
    called += f" (tensor {one.part + 1})" if one.part else ""
    error = Text("same" if one.distance.same else error_text(one.distance), "red" if one.drifts else "")
    allowed = "" if math.isnan(one.allowed) else share_text(one.allowed)
    return [f"{name}{called}", error, allowed, f"{one.distance.cosine:.6f}"]


def _changed(proof: Proof) -> Iterator[RenderableType]:
    if proof.drift is None:
        return
    yield Text()
    yield Columns([[escape(one.key), change_text(one)] for one in proof.changed[:SHOWN]])
    left = len(proof.changed) - SHOWN
    if left > 0:
        yield Text(f"  and {left} more in this block (--json lists all)", "dim")
    others = proof.changed_elsewhere
    named = f": {listing(others, 3, where='')}" if others else ""
    said = f"{count(len(others), 'weight')} of other blocks {'differs' if len(others) == 1 else 'differ'}, too{named}"
    yield Hanging(
        Text("  "),
        Text(said if others else "the weights of the other blocks differ by no more than rounding explains", "dim"),
    )


def _unseen(proof: Proof) -> Iterator[RenderableType]:
    """Yield a line for each weight that differs by more than rounding explains, without an effect on the outputs."""
    if proof.drift is not None or not proof.unused_differing:
        return
    known = {one.key: change_text(one) for one in proof.changed}
    yield Text()
    yield Columns([[escape(key), known.get(key, "differs")] for key in proof.unused_differing[:SHOWN]])
    left = len(proof.unused_differing) - SHOWN
    if left > 0:
        yield Text(f"  and {left} more that these inputs do not use (--json lists all)", "dim")


def _unused(proof: Proof) -> Iterator[RenderableType]:
    if not proof.unused:
        return
    apart = {*proof.unused_differing, *proof.changed_elsewhere}
    differ = [key for key in proof.unused if key in apart]
    number = str(len(differ)) if differ else "none"
    said = f"{number} of which {'differ' if len(differ) > 1 else 'differs'} by more than rounding explains"
    yield Text()
    yield Hanging(
        Text("  not reached  ", "yellow"),
        f"{count(len(proof.unused), 'tensor')} that these inputs do not use, {said}: "
        f"{listing(differ or proof.unused, 3)}",
    )


# The loss barrier between two networks.

WIDTH = 30
"""The length of the bar of the highest loss."""


def barrier_view(found: LossBarrier) -> RenderableType:
    """Return the barrier, the networks, and the loss at each point with a bar."""
    head = Hanging(Text("BARRIER  ", "bold"), _said(found))
    networks = Columns(
        [
            *(
                [letter, f"{escape(one.path)}  {escape(one.kind)}, {human_count(one.parameters)} parameters"]
                for letter, one in (("A", found.first), ("B", found.second))
            ),
            ["inputs", escape(found.inputs, 300)],
            ["loss", found.loss],
        ]
    )
    titles: list[str | Text] = [
        Text(name, "dim") for name in ("alpha", "loss", "above the line", "loss as a bar from 0")
    ]
    most = max((one.loss for one in found.points if math.isfinite(one.loss)), default=0.0)
    rows = [_point(one, most, is_highest=one is found.highest) for one in found.points]
    return Group(head, Text(), networks, Text(), Columns([titles, *rows], right=(0, 1, 2)))


def _said(found: LossBarrier) -> str:
    ends = f"A has {_number(found.points[0].loss)}, B has {_number(found.points[-1].loss)}"
    order = ", with B in the order of A" if found.aligned else ""
    if found.barrier == 0:
        return f"none: the loss is nowhere above the line between the losses of A and B{order} ({ends})"
    return (
        f"{_number(found.barrier)} at alpha {found.alpha:g}: by this much the loss is above the line between the "
        f"losses of A and B{order} ({ends}); the highest loss, at alpha {found.highest_loss.alpha:g}, is "
        f"{_number(found.above_mean)} above their mean"
    )


def _point(one: BarrierPoint, most: float, *, is_highest: bool) -> list[str | Text]:
    length = round(WIDTH * one.loss / most) if most > 0 and math.isfinite(one.loss) else 0
    bar = Text("█" * max(length, 0), "red" if is_highest and one.above > 0 else "blue")
    return [f"{one.alpha:g}", _number(one.loss), _number(one.above), bar]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"
