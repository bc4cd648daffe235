"""Shows a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from rich.console import Group, RenderableType
from rich.text import Text

from ..methods.lora.expert_stack import is_stack
from ..planning.plan.check import Costs
from ..planning.plan.compute import Merge
from ..planning.plan.plan import Plan
from ..planning.plan.rows import VocabularyRows
from ..planning.plan.step import STORED_ROWS, Step
from ..tensors.dtypes import DTYPES
from ..tensors.quantised.encoding import QuantisedTensors
from ..util.text import count, escape, human_bytes, human_count, listing, percent, shape_text
from .columns import Columns, Hanging
from .tree import branch_names

__all__ = ["costs_said", "plan_lines", "plan_view", "rows_said"]

BAR = 12
UNLOADED = ("initialised", "kept")
MADE_OF = 3


@dataclass
class _Branch:
    """The tensors of one module in a plan: their number in each class, and the number of values from sources.

    ``owners`` are the keys to which its tied tensors are tied; values of tied tensors are not counted.
    """

    name: str
    classes: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    loaded: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    owners: Counter[str] = field(default_factory=Counter)

    def add(self, step: Step, codes: Sequence[QuantisedTensors]) -> None:
        """Count a step; ``codes`` are the quantised tensors of each source."""
        self.classes[step.kind] += 1
        if step.tied_to:
            self.owners[f"tied to {step.tied_to}"] += 1
            return
        elements = _values(step, codes)
        self.elements += elements
        if step.kind == "copied" and not (step.reason or step.policy):  # the usual case: copied whole, without a note
            self.loaded += elements
            return
        self.loaded += elements * _share(step)
        reason = _reason(step)
        if reason:
            self.reasons[reason] += 1


def _values(step: Step, codes: Sequence[QuantisedTensors]) -> int:
    """Return the number of values in a tensor; for quantised tensors, the values that codes decode to, not bytes.

    Scales that are stored in addition to codes are not counted. ``codes`` are the quantised tensors of each source.
    Packed codes that are copied unchanged from a source that is not in ``codes`` are counted as stored words.
    """
    if step.coded is not None:
        return prod(step.coded.shape) if step.coded.role == "codes" else 0
    if step.source is not None and step.source < len(codes) and step.shape == step.source_shape:
        coded = codes[step.source].by_key.get(step.source_key)
        if coded is not None:
            return coded.at_least if step.source_key == coded.codes else 0
    dtype = DTYPES[step.dtype]
    numbers, nbytes = dtype.block or (dtype.values, 1)
    return prod(step.shape) * numbers // nbytes


def _share(step: Step) -> float:
    """Return the part of a tensor's values that comes from a source, from 0 to 1."""
    if step.kind in UNLOADED:
        return 0.0
    if step.rows is not None:
        return step.rows.share
    numbers = step.numbers
    elements: int = prod(numbers.shape)
    return numbers.shared / elements if numbers.shared is not None and elements else 1.0


def rows_said(rows: VocabularyRows) -> str:
    """Return a text on the rows of tokens: ``19 of 30 tokens kept (7 moved), 11 new, 2 rows of padding``."""
    moved = f" ({rows.moved} moved)" if rows.moved else ""
    more = [f"{rows.composed} composed"] if rows.composed else []
    more += [f"{rows.fresh - rows.padded} new"] if rows.fresh > rows.padded else []
    more += [f"{count(rows.padded, 'row')} of padding"] if rows.padded else []
    return ", ".join([f"{rows.kept} of {len(rows.rows) - rows.padded} tokens kept{moved}", *more])


def costs_said(costs: Costs) -> str:
    """Return the costs as a text: ``reads up to 2.0 GB in 3 passes, writes 0.5 GB, about 96 MB of memory``."""
    passes = f"up to {human_bytes(costs.nbytes_read)} in {costs.passes} passes"
    reads = passes if costs.passes > 1 else human_bytes(costs.nbytes_read)
    return (
        f"reads {reads}, writes {human_bytes(costs.nbytes_written)}, about {human_bytes(costs.memory_nbytes)} of memory"
    )


FITTED = {"vocab": "by token", "slice": "their leading parts", "overlap": "their common part"}


def _merged(step: Step, merge: Merge) -> str:
    """Return how a tensor is merged: ``ties of 2 models onto the base, by token`` (``ties`` is the method)."""
    onto = " onto the base" if merge.base else ""
    fitted = f", {FITTED[step.policy]}" if step.policy in FITTED else ""
    return f"{merge.method} of {count(len(step.combined) - merge.base, 'model')}{onto}{fitted}"


def _reason(step: Step) -> str:
    if step.reason == "excluded":
        return f"excluded by {step.rule}" if step.rule.startswith("--") else step.rule
    if step.reason == "missing":
        return f"in no source, {step.rule}" if step.rule else "in no source"
    if step.reason:
        return step.rule
    if step.rows is not None:
        return rows_said(step.rows)
    if step.merge is not None:
        return _merged(step, step.merge)
    if is_stack(step.policy):
        return "joined expert by expert"
    if step.policy and step.policy != STORED_ROWS:
        return f"{step.policy} {shape_text(step.source_shape)} to {shape_text(step.numbers.shape)}"
    if step.operation:
        return step.operation
    if step.kind == "cast":
        return f"{step.source_dtype} to {step.dtype}"
    return ""


def _branches(plan: Plan) -> list[_Branch]:
    """Return the steps of a plan grouped by module; a module is named by the first segments of its keys."""
    names = branch_names([step.key for step in plan.steps])
    codes = [one.codes for one in getattr(plan.inputs, "sources", ())]  # a plan read from JSON has no open sources
    found: dict[str, _Branch] = {}
    for step in plan.steps:
        name = names[step.key]
        found.setdefault(name, _Branch(name)).add(step, codes)
    return list(found.values())


def plan_view(plan: Plan) -> RenderableType:
    """Return a table with the classes of the tensors of each module, and the keys of the sources that are not used."""
    present = list(plan.counts)
    branches = _branches(plan)
    rows: list[list[str | Text]] = [["", *(Text(kind, "dim") for kind in present), Text("from the source", "dim")]]
    rows += [_branch_row(branch, present) for branch in branches]
    rows.append(_total_row(branches, present))
    parts: list[RenderableType] = [Columns(rows, right=range(1, len(present) + 1))]
    if plan.costs is not None:
        parts.append(Hanging(Text("  costs     ", "dim"), costs_said(plan.costs)))
    if plan.unexpected:
        parts.append(Hanging(Text("  not used  ", "yellow"), listing([key for _, key in plan.unexpected])))
    return Group(*parts)


def _branch_row(branch: _Branch, present: Sequence[str]) -> list[str | Text]:
    share = branch.loaded / branch.elements if branch.elements else None
    counts = [str(branch.classes[kind]) if branch.classes[kind] else "-" for kind in present]
    return [escape(branch.name), *counts, _bar(share, _reasons(branch))]


def _reasons(branch: _Branch) -> str:
    found = branch.reasons if branch.elements or branch.reasons else branch.owners
    common = [escape(reason, 80) for reason, _ in found.most_common(2)]
    more = len(found) - len(common)
    return "; ".join(common) + (f"; and {more} more" if more > 0 else "")


def _bar(share: float | None, remark: str) -> Text:
    """Return ``share``, the part of the values that comes from a source, as a bar and in percent; then ``remark``."""
    if share is None:
        return Text(remark, "dim")
    filled = min(max(round(share * BAR), 1 if share else 0), BAR - 1 if share < 1 else BAR)
    bar = Text().append("#" * filled, "green")
    bar.append("." * (BAR - filled), "dim")
    bar.append(f" {percent(share):>5}")
    if remark:
        bar.append(f"  {remark}", "dim")
    return bar


def _total_row(branches: Sequence[_Branch], present: Sequence[str]) -> list[str | Text]:
    total = sum((branch.classes for branch in branches), Counter[str]())
    elements = sum(branch.elements for branch in branches)
    share = sum(branch.loaded for branch in branches) / elements if elements else 0.0
    counts = [Text(str(total[kind]), "bold") for kind in present]
    return [
        Text("total", "bold"),
        *counts,
        _bar(share, f"of {human_count(elements)} {'value' if elements == 1 else 'values'}"),
    ]


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield one line for each destination tensor: its key, its class (copied, cast …), its source and its rule."""
    rows = []
    for step in plan.steps:
        rule = "  ".join(filter(None, (_reason(step), step.rule if not step.reason else "")))
        rows.append([escape(cell, 2000) for cell in (step.key, step.kind, _origin(step, plan), rule)])
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for *cells, rule in rows:
        aligned = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield f"  {aligned}  {rule}".rstrip()


def _origin(step: Step, plan: Plan) -> str:
    """Return the source of a tensor, and the key in the source if it differs; ``-`` if no source has the tensor."""
    if step.source is None or (step.op == "keep" and plan.sources[step.source].role == "destination"):
        return "-"
    keys = ", ".join(step.made_of[:MADE_OF]) + (", …" if len(step.made_of) > MADE_OF else "")
    name = plan.sources[step.source].name
    return f"{name}: {keys or step.source_key}" if keys or step.source_key != step.key else name
