"""The error for two token lists in the wrong order in ``--vocab``, with a hint on how to correct them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....errors import PlanError
from ....planning.plan.plan import Plan
from ....util.text import count, escape
from ..folder import ModelFolder

if TYPE_CHECKING:
    from ....vocabulary.replacement import NewVocabulary

__all__ = ["swapped_lists_error"]


def swapped_lists_error(plan: Plan, change: NewVocabulary, why: str, destination: ModelFolder | None) -> PlanError:
    """Return the error for a second list in ``--vocab`` that belongs to the source; ``why`` says how that is known.

    ``destination`` is the folder of a destination that is a checkpoint, else None. If the first list is the
    destination's, the hint is to swap the lists. The destination's tokeniser shows this or, without a tokeniser, its
    number of rows. A destination that is a configuration is built for the second list, so its rows do not show this;
    then the hint names both cases.
    """
    first, second = map(escape, change.paths)
    swapped = f"--vocab {second}:{first}"
    own = None if destination is None else destination.tokens
    rows = {} if destination is None or own is not None else _rows(plan)
    tokens = len(change.source.tokens)
    name = escape(plan.target.name)
    small = next((key for key, number in rows.items() if number < tokens), "")
    if own is not None and own == change.new.tokens:
        hint = f"The tokeniser of {name} has the same tokens: leave --vocab out."
    elif own is not None and own != change.source.tokens:
        hint = _neither(first, second, f"the tokeniser of {name} has other tokens than both")
    elif small:
        has = f"{escape(small)} has {count(rows[small], 'row')} in {name}"
        hint = _neither(first, second, f"{has}, but the list has {count(tokens, 'token')}")
    elif own is not None or (rows and set(rows.values()) == {tokens} and tokens != len(change.new.tokens)):
        hint = f"Put the source's list first: {swapped}."
    else:
        hint = f"If {first} is the destination's list, put the source's list first: {swapped}. Else give the "
        hint += f"destination's list: --vocab {second}:DST_TOKENS."
    return PlanError(f"--vocab has {second} as the destination's token list, but this is {why}.", hint=hint)


def _neither(first: str, second: str, why: str) -> str:
    return (
        f"{first} is not the destination's list either ({why}): give the destination's list: --vocab "
        f"{second}:DST_TOKENS."
    )


def _rows(plan: Plan) -> dict[str, int]:
    """Return {key: number of rows} of the destination's tensors whose rows are mapped by token."""
    return {
        step.key: step.shape[step.axis]
        for step in plan.steps
        if step.rows is not None and step.axis is not None and step.axis < len(step.shape)
    }
