"""Turns the operations that resize weights into operations that resize an optimizer's moments of their gradients.

Moments are means of gradients, or of their squares, so they change as gradients do. Let the new weights be L w, for
weights w of the source. If the network computes the same, the gradient g of w is the sum over L of the gradients of the
new weights: g = transpose(L) g'. This gives, for each operation:

- A weight that is copied n times: if the network uses the copies alike, each copy has 1/n of the gradient. The mean of
  squares is divided by n squared. Copies of key and value heads are read by different queries: the gradients of the
  copies sum to g, but they differ, so equal shares are an estimate (``Change.unlike``).
- A weight that is multiplied by c: the gradient is divided by c. (So a weight that is repeated n times and divided by n
  keeps its gradient: it reads copies, each of which has the whole value.)
- A weight that is moved, or left out: its gradient is also moved, or left out.
- A weight to which a number is added: the gradient does not change.
- A mean of several weights: the mean of squares of the new gradient cannot be computed from those of the old.
- New elements: their gradient is not known. Their first moment is 0. Second moments of 0 would make the first steps too
  large, since the number of steps says that the mean is complete (up to 6.5 times, with Adam's betas of 0.9 and 0.999).
  So new elements get the second moments of others.

Staged training (https://arxiv.org/abs/2203.06211) also grows the whole state of a training, with its optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...tensors.composition import leaves
from ...tensors.info import Averaged, Summed, TensorInfo
from ..operations.operation import indices_of

__all__ = ["FIRST", "SECOND", "added", "gradient_rows", "why_lost"]

FIRST = ("exp_avg", "momentum_buffer", "exp_inf", "grad_avg")
"""The names of moments in torch's optimizers that are as large as gradients."""
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""The names of moments that are as large as squares of gradients; ``sum`` is Adagrad's."""
_TIMES = 1024
"""The number of copies of a tensor that are made and then cut to the new size, to get moments for new elements."""
Row = Mapping[str, Any]


def gradient_rows(row: Row, moment: str) -> list[dict[str, Any]]:
    """Return the operations on the tensors ``moment.KEY`` that correspond to the operation ``row`` on the weights KEY.

    ``moment`` is one of ``FIRST`` and ``SECOND``.
    """
    verb, *fields = row
    named = {verb: _under(moment, row[verb])}
    for name in fields:
        named[name] = _under(moment, row[name]) if name == "into" else row[name]
    power = 2 if moment in SECOND else 1
    key = named[verb]
    if verb in ("noise", "shift"):
        return []
    if verb == "scale":
        return [{"zero": key}] if not row["by"] else [{**named, "by": float(row["by"]) ** -power}]
    if verb == "tile":
        return [named, *_shares(key, row["times"], power)]
    if verb == "repeat":
        return [named, *_shares(key, row["to"] // row["heads"], power)]
    if verb == "take":
        return [named, *_shares_by_index(key, row, power)]
    if verb == "pad":
        return list(added(key, row["dim"], row["size"], moment))
    return [named]


def added(key: str, dim: int, size: int, moment: str) -> Iterator[dict[str, Any]]:
    """Yield the operations that add elements to the moment ``key`` until its size along ``dim`` is ``size``.

    ``moment`` is the name of the moment, such as ``exp_avg``.
    """
    if moment in SECOND:
        yield {"tile": key, "dim": dim, "times": _TIMES}
        yield {"slice": key, "dim": dim, "begin": 0, "end": size}
    else:
        yield {"pad": key, "dim": dim, "size": size}


def _under(moment: str, keys: Any) -> Any:
    return f"{moment}.{keys}" if isinstance(keys, str) else [f"{moment}.{key}" for key in keys]


def _shares(key: str, times: int, power: int) -> list[dict[str, Any]]:
    return [{"scale": key, "by": float(times) ** -power}] if times > 1 else []


def _shares_by_index(key: str, row: Row, power: int) -> list[dict[str, Any]]:
    """Return operations for a take that copies some elements more often than others: each copy gets its share.

    The moment of an element that is copied n times is multiplied by 1 / n to the power of ``power``.
    """
    block, taken = row.get("block", 1), [at for run in indices_of(row["indices"]) for at in range(*run)]
    times: dict[int, int] = {}
    for at in taken:
        times[at] = times.get(at, 0) + 1
    if len(set(times.values())) == 1:
        return _shares(key, times[taken[0]], power)
    rows = list[dict[str, Any]]()
    for begin, end, often in _runs([times[at] for at in taken]):
        where = {"dim": row["dim"], "begin": begin * block, "end": end * block}
        rows += [{**one, **where} for one in _shares(key, often, power)]
    return rows


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, value) for each run of equal successive values; ``end`` is exclusive."""
    begin = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[begin]:
            yield begin, end, values[begin]
            begin = end


def why_lost(info: TensorInfo) -> str:
    """Return why a resized moment is not the right one: "0 at first" or "means of several"; '' if it is right."""
    if not any(one.storage is not None for one in leaves(info)):
        return "0 at first"
    return "means of several" if _is_summed(info) else ""


def _is_summed(info: TensorInfo) -> bool:
    waiting = [info]
    while waiting:
        made = waiting.pop().made
        if isinstance(made, Summed | Averaged):
            return True
        if made is not None:
            waiting.extend(made.of if isinstance(made.of, tuple) else (made.of,))
    return False
