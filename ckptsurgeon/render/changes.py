"""Shows the changes of several models from a base, and the agreement of these changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.compare.changes import (
    Agreement,
    Changes,
    ChangeSums,
    ModelChange,
    TensorChanges,
    layer_of,
    summed,
    weights_of,
)
from ..util.text import count, escape, natural_key, percent, percent_number
from .columns import Columns, Hanging
from .tree import modules_at

__all__ = ["changes_view", "letter", "models_view", "pairs_view", "relative_said"]

FEW = 3
"""The largest number of pairs of models that have a column each; if there are more, only the lowest cosine is shown."""
SHOWN = 8
OPPOSED = -0.05
"""A cosine below this is shown in red: the changes cancel each other."""


def changes_view(found: Changes, *, every: bool = False, depth: int | None = None) -> RenderableType:
    """Return a table of the models, a table of the pairs of models, and a table of the layers of the network.

    With ``depth``, the last table has a row for each module at that level instead of each layer. With ``every``, it has
    a row for each tensor.
    """
    keys = [one.key for one in found.tensors]
    if every:
        what, names = "tensor", {key: key for key in keys}
    elif depth is None:
        what, names = "layer", {key: layer_of(key) for key in keys}
    else:
        what, names = "module", modules_at(keys, depth)
    parts: list[RenderableType] = [models_view(found)]
    if found.total.pairs:
        parts += [Text(""), pairs_view(found)]
    if len(set(names.values())) > 1:
        parts += [Text(""), *_layers(found, names, what)]
    return Group(*parts, *_exceptions(found), _summary(found))


def letter(index: int) -> str:
    """Return the name of a column: A to Z, then A1 to Z1 and so on."""
    turn, place = divmod(index, len(ascii_uppercase))
    return f"{ascii_uppercase[place]}{turn or ''}"


def models_view(found: Changes) -> RenderableType:
    """Return a table of the models: the size of each change from the base, and the changed values and tensors."""
    total = found.total
    rows: list[list[str | Text]] = [["", *(Text(one, "dim") for one in ("change", "of values", "of tensors", ""))]]
    for index, name in enumerate(found.models):
        own = total.models.get(index, ModelChange())
        tensors = [one for one in found.tensors if index in one.sums.models]
        changed = sum(one.sums.models[index].differs for one in tensors)
        alone = sum(one.sums.changed_by == (index,) for one in tensors)
        words = f"{changed} of {len(tensors)}" + (f", {alone} by no other model" if alone else "")
        share = percent(own.changed / own.values) if own.values else "-"
        rows.append([Text(letter(index), "bold"), relative_said(own), share, words, escape(name)])
    head = Hanging(Text("  "), Text(f"changes from {escape(found.base)}, in percent of its norm", "bold"))
    return Group(head, Columns(rows, right=(1, 2)))


def pairs_view(found: Changes) -> RenderableType:
    """Return a table of the agreement of the changes of each pair of models."""
    rows: list[list[str | Text]] = [["", *(Text(one, "dim") for one in ("cosine", "same sign", "changed by both"))]]
    for pair, one in found.total.pairs.items():
        both = percent(one.both / one.values) if one.values else "-"
        sign = "-" if one.share_of_same_sign is None else percent(one.share_of_same_sign)
        rows.append([Text(_pair(pair), "bold"), _cosine(one), sign, both])
    return Group(Text("  do the changes agree?", "bold"), Columns(rows, right=(1, 2)))


def _pair(pair: tuple[int, int]) -> str:
    return f"{letter(pair[0])} and {letter(pair[1])}"


def relative_said(one: ModelChange | None) -> str:
    """Return a change in percent of the norm of the base, without the sign ``%``.

    Returns "·" if nothing changed, "new" if the norm of the base is 0, "?" if the share cannot be computed, as for
    values that are not finite, and "-" if ``one`` is None.
    """
    if one is None:
        return "-"
    if not one.changed:
        return "?" if one.not_finite else "·"
    if one.relative is None:
        return "?" if one.base.value else "new"  # from zeros
    return percent_number(one.relative)


def _cosine(one: Agreement | None) -> Text:
    value = None if one is None else one.cosine
    if value is None:
        return Text("-")
    return Text(f"{value:.2f}".replace("-0.00", "0.00"), style="red" if value < OPPOSED else "")


def _layers(found: Changes, names: Mapping[str, str], what: str) -> Iterator[RenderableType]:
    """Yield the title and the table of the layers, modules or tensors (``what``) to which ``names`` maps the keys."""
    parts: dict[str, list[TensorChanges]] = {}
    for one in found.tensors:
        parts.setdefault(names[one.key], []).append(one)
    sums = {name: summed(one.sums for one in weights_of(some)) for name, some in parts.items()}
    indices, pairs = range(len(found.models)), list(found.total.pairs)
    few = pairs if len(pairs) <= FEW else []
    labels = [*(f"{letter(a)}·{letter(b)}" for a, b in few), *(["lowest cosine"] if pairs and not few else [])]
    table: list[list[str | Text]] = [["", *(Text(one, "dim") for one in (*map(letter, indices), *labels)), ""]]
    for name in sorted(sums, key=natural_key):
        of = sums[name]
        cells = [Text(relative_said(of.models.get(index))) for index in indices]
        cells += [_cosine(of.pairs.get(pair)) for pair in few]
        cells += [_lowest(of)] if pairs and not few else []
        table.append([escape(name), *cells, ""])
    yield Text(f"  by {what}: change in percent of the norm, then the cosine of each pair", "bold")
    yield Columns(table, right=range(1, len(found.models) + len(labels) + 1))


def _lowest(of: ChangeSums) -> Text:
    known = [(one.cosine, pair) for pair, one in of.pairs.items() if one.cosine is not None]
    if not known:
        return Text("-")
    value, (a, b) = min(known)
    return Text(f"{letter(a)}·{letter(b)} {value:.2f}", style="red" if value < OPPOSED else "")


def _exceptions(found: Changes) -> Iterator[RenderableType]:
    """Yield lines on keys that a model lacks, adds or has with another shape, and on keys that are not compared."""
    for keys, said in ((found.missing, "lacks"), (found.added, "adds"), (found.reshaped, "has another shape of")):
        for index, some in keys.items():
            if some:
                yield Hanging(Text(f"  {letter(index)} {said}  ", "yellow"), _listed(some))
    if found.not_compared:
        reasons: dict[str, list[str]] = {}
        for key, why in found.not_compared.items():
            reasons.setdefault(why, []).append(key)
        for why, refused in reasons.items():
            yield Hanging(Text("  not compared  ", "yellow"), Text(f"{_listed(refused).plain}: {escape(why)}"))


def _listed(keys: Sequence[str]) -> Text:
    more = f" and {len(keys) - SHOWN} more (--json lists all)" if len(keys) > SHOWN else ""
    return Text(", ".join(map(escape, keys[:SHOWN])) + more)


def _summary(found: Changes) -> RenderableType:
    number = len(found.tensors)
    by_several = sum(len(one.sums.changed_by) > 1 for one in found.tensors)
    by_none = sum(not one.sums.changed_by for one in found.tensors)
    words = [count(number, "tensor"), f"{by_several} changed by several models", f"{by_none} by no model"]
    words += [f"{found.left_out} left out"] if found.left_out else []
    odd = found.total.not_finite
    words += [f"{count(odd, 'NaN or Inf value')} left out of all figures"] if odd else []
    return Hanging(Text("  "), Text(", ".join(words), style="" if found.differs else "green"))
