"""Notes on operations that split fused projections, or join their parts, in another order than the names imply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from ....checkpoint.checkpoint import Checkpoint
from ....planning.keys.fused_parts import order_of_parts, part_of, wrong_order
from ....planning.plan.plan import Plan
from ....planning.plan.step import Step
from ....tensors.info import Decoded, Given, Sliced, TensorInfo
from ....util.text import count, escape
from .heads import settings_of

__all__ = ["fused_notes"]


BY_HEAD = ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon")
"""Model types whose ``query_key_value`` has the rows of queries, keys and values of one head, then of the next head."""


def fused_notes(plan: Plan, number: int, source: Checkpoint) -> Iterator[str]:
    """Yield notes on fused projections that operations on source ``number`` split or join in a wrong order.

    ``source`` has the tensors of this source after the plan's operations.
    """
    steps = [step for step in plan.steps if step.source == number and step.made_of and not step.tied_to]
    wrong = [*_split(steps, source), *_joined(steps)]
    for said in dict.fromkeys(said for _, said in wrong):
        keys = [fused for fused, one in wrong if one == said]
        yield (
            f"{said}, but the name {escape(keys[0])} means the order {', '.join(order_of_parts(keys[0]))} "
            f"({count(len(keys), 'fused projection')}): the model would compute something else"
        )
    settings = settings_of(source)
    if settings.get("model_type") in BY_HEAD and settings.get("num_attention_heads") != 1:
        yield from _blocks(steps, source, str(settings["model_type"]))


def _split(steps: list[Step], source: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """Yield (key, text on the fault) of each fused projection that operations split into parts in a wrong order."""
    parts: dict[tuple[str, ...], dict[int, Step]] = {}
    for step in steps:
        if all(map(order_of_parts, step.made_of)) and _part(step) and step.source_key in source:
            parts.setdefault(step.made_of, {})[_begin(source[step.source_key])] = step
    for (fused, *_), found in parts.items():
        order = [_part(found[begin]) for begin in sorted(found)]
        if wrong_order(fused, order):
            yield fused, f"the operation {escape(next(iter(found.values())).operation)} makes {', '.join(order)}"


def _blocks(steps: list[Step], source: Mapping[str, TensorInfo], model_type: str) -> Iterator[str]:
    """Yield a note if a ``query_key_value`` is split into three blocks of rows, although its rows are sorted by head.

    Such a projection has the queries, keys and values of one head, then those of the next head.
    """
    wrong = [
        step
        for step in steps
        if len(step.made_of) == 1 and "query_key_value" in step.made_of[0] and _part(step) and step.source_key in source
        if source[step.source_key].is_plain
    ]
    if wrong:
        yield (
            f"{count(len(wrong), 'tensor is a block', 'tensors are blocks')} of the rows of query_key_value "
            f"({escape(wrong[0].key)}), but {model_type} has the queries, keys and values of one head, then "
            "those of the next: the model would compute something else; reshape to (heads, 3, size, width) before the "
            "split"
        )


def _joined(steps: list[Step]) -> Iterator[tuple[str, str]]:
    """Yield (key, fault) for each fused projection whose parts an operation joins in the wrong order."""
    for step in steps:
        order = list(dict.fromkeys(map(part_of, step.made_of)))
        fused = step.key if order_of_parts(step.key) else step.source_key
        if wrong_order(fused, order):
            yield fused, f"the operation {escape(step.operation)} joins {', '.join(order)}"


def _part(step: Step) -> str:
    return part_of(step.key) or part_of(step.source_key)


def _begin(info: TensorInfo) -> int:
    """Return the position of the first element that a part of a tensor has, counted in the tensor in the file.

    Compare only the positions of parts of one tensor: for a tensor that is not divided, the result is its offset in the
    file.
    """
    made = info.made
    if made is None or isinstance(made, Decoded | Given):
        return info.offset
    if isinstance(made, Sliced):
        return _begin(made.of) + sum(at * prod(made.of.shape[dim + 1 :]) for dim, at in enumerate(made.begin))
    return _begin(made.of[0] if isinstance(made.of, tuple) else made.of)
