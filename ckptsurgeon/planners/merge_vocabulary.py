"""Which tensors of models run along their vocabularies, and along which axis. Never guessed between several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..keys import KeyMatcher, unmatched
from ..plan import Input, Rows
from ..text import count, escape, listing, shape_text
from .options import Flag

__all__ = ["MergeAxes", "MergeVocabulary"]


@dataclass(frozen=True)
class MergeVocabulary:
    """The rows of each source that make the output's vocabulary; the tensors that somebody named, with or without axis.

    ``tokens`` are the output's.
    """

    rows: tuple[Rows, ...]
    tokens: tuple[str, ...]
    keys: tuple[tuple[Flag, int | None], ...] = ()


class MergeAxes:
    """Tells the axis of each tensor: as named, else where the models' sizes differ and just one axis has them."""

    def __init__(self, options: MergeVocabulary, names: Sequence[str], keys: Sequence[str]) -> None:
        self._options, self._names = options, names
        self._named: dict[str, int | None] = {}
        hits = KeyMatcher([flag.pattern for flag, _ in options.keys]).hits(keys)
        for (flag, axis), hit in zip(options.keys, hits, strict=True):
            if not hit:
                raise unmatched(str(flag), flag.pattern, keys, "output")
            self._named.update(dict.fromkeys(hit, axis))
        self._found: list[str] = []
        self._passed: dict[str, int] = {}

    def axis(self, key: str, inputs: Sequence[Input]) -> int | None:
        """Return the axis of a tensor, None where it does not run along the vocabularies, or they are all the same.

        Raises PlanError where sizes contradict the token lists, several axes fit, or nobody has a token.
        """
        rows = [self._options.rows[one.source] for one in inputs]
        if all(one.is_identity for one in rows):
            return None
        fitting = self._fitting(inputs, rows)
        if key in self._named:
            axis = self._checked(key, inputs, rows, self._named[key], fitting)
        elif len({one.size for one in rows}) == 1 or self._options.keys:
            if fitting:  # all have one size: whether it is that of the tokens, no shape tells
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
        return axis

    def _fitting(self, inputs: Sequence[Input], rows: Sequence[Rows]) -> list[int]:
        """Return the axes along which all inputs are as long as their token lists, and alike along all others."""
        shapes = [one.shape for one in inputs]
        if len({len(shape) for shape in shapes}) > 1:
            return []
        return [
            axis for axis in range(len(shapes[0]))
            if all(shape[axis] == one.size for shape, one in zip(shapes, rows, strict=True))
            and len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) == 1
        ]  # fmt: skip

    def _checked(
        self, key: str, inputs: Sequence[Input], rows: Sequence[Rows], axis: int | None, fitting: Sequence[int]
    ) -> int:
        if (axis is None and len(fitting) == 1) or axis in fitting:
            return fitting[0] if axis is None else axis
        if axis is None and len(fitting) > 1:
            raise self._ambiguous(key, fitting)
        said = [
            f"{shape_text(one.shape)} in {escape(self._names[one.source])}, which has {count(own.size, 'token')}"
            for one, own in zip(inputs, rows, strict=True)
        ]
        raise PlanError(
            f"{escape(key)} is {'; '.join(said)}{f' (axis {axis})' if axis is not None else ''}.",
            hint="Are these the vocabularies of the models, with their blank and special tokens? "
            "Name them with --tokens MODEL=LIST.",
        )

    def _check_had(self, key: str, inputs: Sequence[Input], rows: Sequence[Rows]) -> None:
        tokens = self._options.tokens
        none = [token for token, had in zip(tokens, zip(*(r.rows for r in rows), strict=True), strict=True)
                if all(row is None for row in had)]  # fmt: skip
        if none:
            who = listing([escape(self._names[one.source]) for one in inputs], where="")
            raise PlanError(
                f"{escape(key)}: {who} {'has' if len(inputs) == 1 else 'have'} no row for "
                f"{listing([repr(token) for token in none])}.",
                hint="Leave them out of --vocab, or map a model's tokens to them.",
                details=none,
            )

    def _ambiguous(self, key: str, axes: Sequence[int]) -> PlanError:
        return PlanError(
            f"--vocab: axes {' and '.join(map(str, axes))} of {escape(key)} both fit.",
            hint=f"Say which: --vocab-keys {escape(key)}={axes[0]}.",
        )

    def check(self) -> None:
        """Raise PlanError where the vocabularies differ and nothing is mapped by them."""
        if self._found or all(rows.is_identity for rows in self._options.rows):
            return
        pairs = zip(self._names, self._options.rows, strict=True)
        sizes = listing([f"{escape(name)} has {rows.size}" for name, rows in pairs], where="")
        long = f" These have an axis as long as the lists: {listing(list(self._passed))}." if self._passed else ""
        raise PlanError(
            f"--vocab: no tensor is known to run along the vocabularies ({sizes} tokens).{long}",
            hint="Name those that do: --vocab-keys GLOB, or GLOB=AXIS.",
            details=list(self._passed),
        )

    def notes(self) -> Iterator[str]:
        """Say how the vocabularies become one, and which tensors keep their order though they are as long."""
        if not self._found:
            return
        total = len(self._options.tokens)
        for name, rows in zip(self._names, self._options.rows, strict=True):
            unused = rows.size - rows.kept
            more = [f"{rows.moved} moved"] if rows.moved else []
            more += [f"{unused} not used"] if unused else []
            said = f" ({', '.join(more)})" if more else ""
            yield f"{escape(name)} has {rows.kept} of the {count(total, 'token')}{said}"
        if self._passed:
            keep = "keeps its order" if len(self._passed) == 1 else "keep their order"
            named = listing([f"--vocab-keys {escape(key)}={axis}" for key, axis in self._passed.items()], where="")
            yield (
                f"{count(len(self._passed), 'tensor')} as long as the token lists {keep}; "
                f"what is a vocabulary's is mapped with {named}"
            )
