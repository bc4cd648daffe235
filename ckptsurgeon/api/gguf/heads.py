"""Finds the number and size of a model's attention heads, from its configuration and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.keys.pattern import KeyPattern
from ...planning.keys.renaming import KeyMatcher
from ...planning.keys.wrappers import without_wrappers
from ...planning.llama_cpp.layout import Heads
from ...planning.llama_cpp.names import FUSED
from ...util.text import escape, number_in

__all__ = ["fused_heads", "heads_of"]


def heads_of(
    checkpoint: Checkpoint, modules: tuple[str, str], stated: tuple[Any, Any], names: tuple[str, str]
) -> Heads:
    """Return the attention heads of a model with separate queries and keys.

    ``modules`` are the names of the modules of queries and of keys. ``stated`` has two values of the configuration: the
    number of query heads and the number of key heads, or None if the latter equals the former. ``names`` are the names
    of the fields with these numbers, for messages. Raises PlanError if a number is not valid or does not fit the
    weights.
    """
    queries = _number(stated[0], names[0])
    keys = queries if stated[1] is None else _number(stated[1], names[1])
    rows, widths = _sizes(checkpoint, modules[0])
    _check_alike("the query projections", checkpoint, rows, widths)
    if min(rows) % (2 * queries):
        raise PlanError(
            f"the query projections of {escape(checkpoint.path)} have {min(rows)} rows, which do not fit {queries} "
            f"heads ({names[0]}): each head needs the same even number of rows.",
            hint=f"Correct {names[0]}, or convert without changing the layout: --layout keep.",
        )
    size, width = min(rows) // queries, min(widths)
    rows, widths = _sizes(checkpoint, modules[1])
    _check_alike("the key projections (of attention)", checkpoint, rows, widths)
    if widths != {width}:
        raise PlanError(
            f"the key projections (of attention) of {escape(checkpoint.path)} have {min(widths)} columns, but the "
            f"query projections have {width}.",
            hint="Convert without changing the layout: --layout keep.",
        )
    if rows != {keys * size}:
        missing = f" ({names[1]} is missing)" if stated[1] is None else f" ({names[1]})"
        both = " or ".join(dict.fromkeys(names))
        raise PlanError(
            f"the key projections (of attention) of {escape(checkpoint.path)} have {min(rows)} rows, which do not fit "
            f"{keys} heads{missing} of {size} rows. The query projections have {queries * size} rows and {queries} "
            f"heads ({names[0]}), so that each head has {size} rows.",
            hint=f"Correct {both}, whichever is wrong, or convert without changing the layout: --layout keep.",
        )
    return Heads(queries, keys, size, width)


def fused_heads(checkpoint: Checkpoint, stated: tuple[Any, Any], names: tuple[str, str], module: str = FUSED) -> Heads:
    """Return the attention heads of a model in which one ``module`` computes queries, keys and values.

    The size of a head is the width of the model divided by the number of query heads. ``stated`` and ``names`` are as
    in ``heads_of``. Raises PlanError if a number is not valid or does not fit the weights.
    """
    queries = _number(stated[0], names[0])
    keys = queries if stated[1] is None else _number(stated[1], names[1])
    rows, widths = _sizes(checkpoint, module)
    what = "the projections of queries, keys and values"
    _check_alike(what, checkpoint, rows, widths)
    width = min(widths)
    wanted = width + 2 * keys * (width // queries)
    if width % queries or rows != {wanted}:
        needs = (
            f"{wanted} rows are needed" if width % queries == 0 else f"{width} columns cannot be divided by {queries}"
        )
        raise PlanError(
            f"{what} of {escape(checkpoint.path)} have {min(rows)} rows and {width} columns, which do not fit "
            f"{queries} heads of queries and {keys} heads of keys: {needs}.",
            hint=f"Correct {names[0]} or {names[1]}, or convert without changing the layout: --layout keep.",
        )
    return Heads(queries, keys, width // queries, width)


def _check_alike(what: str, checkpoint: Checkpoint, rows: Set[int], columns: Set[int]) -> None:
    """Raise PlanError unless the weights have the same number of rows, and of columns, in all layers.

    ``what`` is the name of the weights in the message. ``rows`` and ``columns`` are the numbers of rows and columns
    that occur in the layers; they are empty if there are no such weights.
    """
    for name, found in (("rows", rows), ("columns", columns)):
        if len(found) != 1:
            differ = f"{what} of {escape(checkpoint.path)} have {sorted(found)} {name} in different layers"
            is_wrapped = not found and any(key != without_wrappers(key) for key in checkpoint)
            raise PlanError(
                f"{differ}; every layer must have them, in the same shape."
                if found
                else f"{escape(checkpoint.path)} has no tensor of {what}.",
                hint="Use --unwrap: the keys begin with a wrapper that training added."
                if is_wrapped
                else "Convert without changing the layout: --layout keep.",
            )


def _number(stated: Any, name: str) -> int:
    number = number_in(stated) if isinstance(stated, str) else stated
    if type(number) is not int or not 0 < number < 1 << 20:
        raise PlanError(
            f"the number of heads ({name}) is {escape(str(stated), 40)}, but it must be one number above 0.",
            hint=f"Correct {name}, or convert without changing the layout: --layout keep.",
        )
    return number


def _sizes(checkpoint: Checkpoint, module: str) -> tuple[Set[int], Set[int]]:
    """Return two sets: the numbers of rows, and the numbers of columns, that a module's weight has in the layers."""
    found = KeyMatcher([KeyPattern.given(f"{module}.weight", "")]).hits(list(checkpoint))[0]
    shapes = [checkpoint[key].shape for key in found]
    return {shape[0] if shape else 0 for shape in shapes}, {shape[1] if len(shape) == 2 else 0 for shape in shapes}
