"""Finds the vocabulary axis of the models' tensors; raises an error, instead of guessing, if several axes fit."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...util.text import count, escape, listing, shape_text
from ..keys.pattern import OptionPattern
from ..keys.pattern_hints import matched
from ..plan.rows import VocabularyRows
from ..plan.step import Input

__all__ = ["MergeAxes", "MergeVocabulary"]


@dataclass(frozen=True)
class MergeVocabulary:
    """The vocabularies of a merge, and for each source the rows that become rows of the output.

    ``rows`` and ``lists`` have an entry for each source: its rows, and its list of tokens. ``tokens`` are the output's
    tokens. The sources whose index is in ``open`` may have more tokens than their list. ``keys`` are the patterns of
    --vocab-keys, each with its axis, if the user gave an axis.
    """

    rows: tuple[VocabularyRows, ...]
    tokens: tuple[str, ...]
    lists: tuple[tuple[str, ...], ...]
    keys: tuple[tuple[OptionPattern, int | None], ...] = ()
    open: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """The number of rows of the output, which may include padding rows without a token."""
        return len(self.rows[0].rows)

    @property
    def is_identity(self) -> bool:
        """Whether all models have exactly the output's vocabulary."""
        return all(one.is_identity for one in self.rows)


class MergeAxes:
    """Finds the vocabulary axis of each tensor: the axis that has a row for each token.

    It is the axis that the user gave, else the only axis that is as long as the vocabulary in every model. If all
    vocabularies have the same length, or --vocab-keys is given, only the tensors that --vocab-keys selects have a
    vocabulary axis.
    """

    def __init__(self, options: MergeVocabulary, names: Sequence[str], keys: Sequence[str]) -> None:
        self._options, self._names = options, names
        self._named: dict[str, int | None] = {}
        hits, self._overlooked = matched([(str(flag), flag.pattern) for flag, _ in options.keys], keys, "output")
        for (_, axis), hit in zip(options.keys, hits, strict=True):
            self._named.update(dict.fromkeys(hit, axis))
        self._found: list[str] = []
        self._passed: dict[str, int] = {}
        self._beyond: dict[int, int] = {}
        self._nobodys: dict[str, None] = {}

    def axis(self, key: str, inputs: Sequence[Input]) -> int | None:
        """Return the vocabulary axis of a tensor, None if it has no such axis or all vocabularies are the same.

        Raises PlanError if sizes contradict the token lists, if several axes fit, or if no model has a row for a
        token.
        """
        rows = [self._options.rows[one.source] for one in inputs]
        if all(one.is_identity for one in rows) and len({one.shape for one in inputs}) == 1:
            return None
        fitting = fitting_axes(inputs, rows)
        if key in self._named:
            axis = self._checked(key, inputs, rows, self._named[key], fitting)
        elif len({one.size for one in rows}) == 1 or self._options.keys:
            if fitting:  # all sizes are equal: the shape does not show whether that is the number of tokens
                self._passed[key] = fitting[0]
            return None
        elif len(fitting) > 1:
            raise self._ambiguous(key, fitting)
        elif not fitting:
            return None
        else:
            axis = fitting[0]
        self._check_had(key, inputs, rows)
        self._found.append(key)
        for one in inputs:
            beyond = one.shape[axis] - len(self._options.lists[one.source])
            self._beyond[one.source] = max(beyond, self._beyond.get(one.source, beyond))
            if beyond > 0 and one.source in self._options.open:
                raise self._unreached(key, one.source, beyond)
        return axis

    def _unreached(self, key: str, source: int, beyond: int) -> PlanError:
        name = escape(self._names[source])
        rows = f"{count(beyond, 'row')} of {name} {'is' if beyond == 1 else 'are'} beyond the"
        tokens = count(len(self._options.lists[source]), "token")
        return PlanError(
            f"{escape(key)}: {rows} {tokens} of its token list: the tokeniser of {name} may have more tokens, before "
            "or after these.",
            hint="Save the tokenizer.json of this tokeniser with transformers, and give this file: --tokens "
            f"{name}=LIST.",
        )

    def _checked(
        self,
        key: str,
        inputs: Sequence[Input],
        rows: Sequence[VocabularyRows],
        axis: int | None,
        fitting: Sequence[int],
    ) -> int:
        if axis is None and len(fitting) == 1:
            return fitting[0]
        if axis is not None and axis in fitting_axes(inputs, rows, longer=True):
            return axis
        if axis is None and len(fitting) > 1:
            raise self._ambiguous(key, fitting)
        details = [
            f"{shape_text(one.shape)} in {escape(self._names[one.source])}, which has {count(own.size, 'token')}"
            for one, own in zip(inputs, rows, strict=True)
        ]
        raise PlanError(
            f"the tensor {escape(key)} does not fit the vocabularies: it is {'; '.join(details)}"
            f"{f' (axis {axis})' if axis is not None else ''}.",
            hint="Give the vocabularies of the models, with their blank and special tokens: --tokens MODEL=LIST. If "
            "the tensor is longer than its list, give the axis: --vocab-keys GLOB=AXIS.",
        )

    def _check_had(self, key: str, inputs: Sequence[Input], rows: Sequence[VocabularyRows]) -> None:
        tokens = self._options.tokens
        lent = {place for one in rows for place, _ in one.lent}
        self._check_lenders(key, inputs, lent)
        none = [
            token for place, token in enumerate(tokens)
            if place not in lent and all(one.rows[place] is None for one in rows)
        ]  # fmt: skip
        if all(one.new == "others or zero" for one in rows):
            self._nobodys.update(dict.fromkeys(none))
        elif none:
            who = listing([escape(self._names[one.source]) for one in inputs], where="")
            raise PlanError(
                f"{escape(key)}: {who} {'has' if len(inputs) == 1 else 'have'} no row for "
                f"{listing([repr(token) for token in none])}.",
                hint="Remove these tokens from the list of --vocab: each row must come from a model.",
                details=none,
            )

    def _check_lenders(self, key: str, inputs: Sequence[Input], lent: Collection[int]) -> None:
        """Raise PlanError if the row of a token should come from a model from which this tensor is not merged.

        ``inputs`` are the models' tensors that are merged. ``lent`` has the output rows that one of them provides for
        models without the row's token.
        """
        merged = {one.source for one in inputs}
        for source, rows in enumerate(self._options.rows):
            for place, _ in rows.lent if source not in merged else ():
                if place not in lent and any(self._options.rows[one].rows[place] is None for one in merged):
                    raise PlanError(
                        f"{escape(key)}: the row of the token {self._options.tokens[place]!r} should come from "
                        f"{escape(self._names[source])}, but this tensor is not merged from that model.",
                        hint="Use a model that this tensor is merged from.",
                    )

    def _ambiguous(self, key: str, axes: Sequence[int]) -> PlanError:
        return PlanError(
            f"--vocab: axes {' and '.join(map(str, axes))} of {escape(key)} both fit the vocabularies.",
            hint=f"Choose an axis, as in --vocab-keys {escape(key)}={axes[0]}, and select all other tensors with a row "
            "for each token, too.",
        )

    def check(self) -> None:
        """Raise PlanError if the vocabularies differ but no tensor with a vocabulary axis was found."""
        if self._found or self._options.is_identity:
            return
        pairs = zip(self._names, self._options.lists, strict=True)
        sizes = listing([f"{escape(name)} has {len(tokens)}" for name, tokens in pairs], where="")
        long = f" These have an axis as long as the lists: {listing(list(self._passed))}." if self._passed else ""
        raise PlanError(
            f"--vocab: no tensor with a vocabulary axis was found ({sizes} tokens).{long}",
            hint="Select the tensors with a row for each token: --vocab-keys GLOB, or GLOB=AXIS.",
            details=list(self._passed),
        )

    def notes(self) -> Iterator[str]:
        """Yield notes on the union of the vocabularies, and on rows that are not mapped, but may belong to tokens.

        The tensors with such rows have an axis as long as the token lists.
        """
        yield from self._overlooked
        if not self._found:
            return
        yield from map(self._had, range(len(self._names)))
        if self._nobodys:
            rows = "their rows are" if len(self._nobodys) > 1 else "its row is"
            yield f"no model that is merged has {listing([repr(token) for token in self._nobodys])}: {rows} zero"
        if padded := self._options.rows[0].padded:
            rows = count(padded, "row at the end has", "rows at the end have")
            yield f"{rows} no token: each model fills them with the mean of its other rows"
        if self._passed:
            keep = "keeps its order" if len(self._passed) == 1 else "keep their order"
            named = listing([f"--vocab-keys {escape(key)}={axis}" for key, axis in self._passed.items()], where="")
            yield (
                f"{count(len(self._passed), 'tensor')} with an axis as long as the token lists {keep}; "
                f"if the axis is a vocabulary, map it with {named}"
            )

    def _had(self, source: int) -> str:
        """Return a note on a model: how many of the output's tokens it has, how many of its rows move or are unused."""
        options, beyond = self._options, self._beyond.get(source, 0)
        rows, known = options.rows[source], options.lists[source]
        had = len(set(options.tokens).intersection(known[: rows.size]))
        unused = min(len(known), rows.size) - had
        more = [f"{rows.moved} moved"] if rows.moved else []
        more += [f"{unused} not used"] if unused else []
        more += [f"{count(beyond, 'row')} beyond its tokens left out"] if beyond > 0 else []
        more += [f"{-beyond} without a row"] if beyond < 0 else []
        details = f" ({', '.join(more)})" if more else ""
        return f"{escape(self._names[source])} has {had} of the {count(len(options.tokens), 'token')}{details}"


def fitting_axes(inputs: Sequence[Input], rows: Sequence[VocabularyRows], *, longer: bool = False) -> list[int]:
    """Return the axes along which each input is as long as its vocabulary, while all other axes have equal lengths.

    ``rows`` has the vocabulary of each input. With ``longer`` an input may be longer: rows beyond its vocabulary belong
    to no token.
    """
    shapes = [one.shape for one in inputs]
    if len({len(shape) for shape in shapes}) > 1:
        return []
    fits = operator.ge if longer else operator.eq
    return [
        axis for axis in range(len(shapes[0]))
        if all(fits(shape[axis], one.size) for shape, one in zip(shapes, rows, strict=True))
        and len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) == 1
    ]  # fmt: skip
