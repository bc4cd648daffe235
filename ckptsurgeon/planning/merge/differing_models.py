"""Merges of models that differ: the options for them, the fitting of tensors with other shapes, and notes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ...errors import ConfigError, PlanError
from ...tensors.dtypes import DTYPES, dtype_named
from ...util.text import brief_repr, count, escape, grouped, listing, shape_text
from ..keys.pattern import OptionPattern, with_equals
from ..keys.pattern_hints import matched
from ..keys.transposed import is_transposed, square_siblings, transposed_hint, transposed_note
from ..mismatch.policies import is_reshape
from ..plan.files import SourceView
from ..plan.step import Input
from ..transplant.by_place import PositionalRows, ShapeChange
from .pieces import MergePiece, SourceKey
from .statistics import ModelStatistics
from .vocabulary import MergeAxes, MergeVocabulary

__all__ = [
    "FITTED",
    "MERGE_POLICIES",
    "FittedInputs",
    "MergeMismatch",
    "MergeNotes",
    "MergeOptions",
    "ShapeFitting",
    "input_of",
]

# Policies for models whose shapes differ from the output's: everywhere, or by pattern.

MERGE_POLICIES = ("error", "skip", "slice", "overlap")


@dataclass(frozen=True)
class MergeMismatch:
    """The policies for shapes that differ: ``everywhere`` for all tensors, ``scoped`` for those that a pattern matches.

    If several patterns match a key, the last one decides.
    """

    everywhere: str = "error"
    scoped: tuple[tuple[OptionPattern, str], ...] = ()

    @staticmethod
    def of(given: str | Mapping[str, str] | Sequence[str]) -> MergeMismatch:
        """Return the policies in one or several strings (``slice``, ``GLOB=slice``), or in a map by pattern.

        Raises ConfigError for an unknown policy, or for two different policies for all tensors.
        """
        pairs = (
            given.items() if isinstance(given, Mapping) else map(_pair, [given] if isinstance(given, str) else given)
        )
        everywhere, scoped = "", []
        for pattern, policy in pairs:
            if policy not in MERGE_POLICIES:
                hint = with_equals(str(policy), MERGE_POLICIES) or f"Use {', '.join(MERGE_POLICIES)}."
                raise ConfigError(f"--on-mismatch {escape(str(policy))} is unknown.", hint=hint)
            if pattern:
                scoped.append((OptionPattern.of("--on-mismatch", pattern, f"={policy}"), policy))
            elif everywhere not in ("", policy):
                raise ConfigError(
                    f"--on-mismatch {everywhere} and --on-mismatch {policy} contradict each other.",
                    hint="Keep one policy, or restrict one to some tensors: --on-mismatch GLOB=POLICY.",
                )
            else:
                everywhere = policy
        return MergeMismatch(everywhere or "error", tuple(scoped))

    def by_key(self, keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the policy of each key that a policy's pattern matches, and notes on the patterns.

        Raises PatternError for a pattern that matches no key.
        """
        found: dict[str, str] = {}
        if not self.scoped:
            return found, []
        hits, notes = matched([(str(flag), flag.pattern) for flag, _ in self.scoped], keys, "output")
        for (_, policy), hit in zip(self.scoped, hits, strict=True):
            found.update(dict.fromkeys(hit, policy))
        return found, notes


def _pair(text: object) -> tuple[str, str]:
    if not isinstance(text, str):
        raise ConfigError(
            f"--on-mismatch must be strings, not {brief_repr(text)}.", hint="Give a policy, or GLOB=POLICY."
        )
    pattern, _, policy = text.rpartition("=")
    return pattern, policy


ON_MISSING = ("error", "base", "skip", "any")
INT_BUFFERS = ("last", "first", "max")
COMPUTE = ("float32", "float64")


@dataclass(frozen=True)
class MergeOptions:
    """Options for models that differ, and the dtypes of computation and output; ``of`` checks them.

    ``statistics`` maps the index of each model to its statistics, if the method uses them. ``encoded`` are the keys of
    weights that the output stores quantised, as one of the models does.
    """

    on_missing: str = "error"
    mismatch: MergeMismatch = field(default_factory=MergeMismatch)
    int_buffers: str = "last"
    dtype: str = ""
    compute: str = ""
    vocabulary: MergeVocabulary | None = None
    device: str = ""
    statistics: Mapping[int, ModelStatistics] = field(default_factory=dict)
    encoded: Collection[str] = ()

    @staticmethod
    def of(
        *,
        on_missing: str,
        on_mismatch: str | Mapping[str, str] | Sequence[str] | None,
        int_buffers: str,
        dtype: str | None,
        compute: str | None,
        vocabulary: MergeVocabulary | None = None,
        device: str = "",
    ) -> MergeOptions:
        """Return the options from what a user wrote; raises ConfigError for an unknown value."""
        chosen = (
            ("--on-missing", on_missing, ON_MISSING),
            ("--int-buffers", int_buffers, INT_BUFFERS), ("--compute", compute or COMPUTE[0], COMPUTE),
        )  # fmt: skip
        for flag, value, known in chosen:
            if value not in known:
                raise ConfigError(f"{flag} {escape(str(value))} is unknown.", hint=f"Use {', '.join(known)}.")
        mismatch = MergeMismatch.of(on_mismatch or "error")
        options = MergeOptions(on_missing, mismatch, int_buffers, "", compute or "", vocabulary, device)
        return options.or_dtype(dtype or "")

    def or_dtype(self, dtype: str) -> MergeOptions:
        """Return the options with ``dtype`` if none was set; raises ConfigError if it is not a real floating dtype."""
        wanted = dtype_named(dtype) if dtype else ""
        if wanted and DTYPES[wanted].kind != "float":
            raise ConfigError(
                f"dtype {wanted} is not a real floating-point dtype.", hint="Use float32, bfloat16, float16, …"
            )
        return replace(self, dtype=self.dtype or wanted)


# Tensors of the same name whose shapes differ.

Shape = tuple[int, ...]


class FittedInputs(NamedTuple):
    """The tensors that are merged into one output tensor, and how their shapes are made equal.

    ``inputs`` maps the index of each model to its tensor, ``base`` is the base's tensor, if there is a base. ``shape``
    is the output's shape. ``policy`` says how other shapes are made to fit this shape: slice, overlap, vocab, or "" if
    no tensor needs this. ``axis`` is the vocabulary axis if the policy is ``vocab``.
    """

    inputs: Mapping[int, Input]
    base: Input | None
    shape: Shape
    policy: str = ""
    axis: int = 0


def input_of(views: Sequence[SourceView], place: SourceKey) -> Input:
    """Return a tensor of a source as an input of a step, with its key, dtype and shape."""
    info = views[place.source].tensors[place.key]
    return Input(place.source, place.key, info.dtype, info.shape)


def _alike(one: Shape, other: Shape) -> bool:
    """Return whether tensors of these two shapes can be merged as they are, without a policy."""
    return one == other or is_reshape(one, other)


REMEDIES = {
    "skip": "--on-mismatch skip to merge without the tensors that differ",
    "slice": "slice to use the first part of larger ones",
    "overlap": "overlap to merge the part that all have",
    "--vocab": "--vocab to map rows by token lists",
}
"""{option for tensors that differ: its description in a hint}."""


class ShapeFitting:
    """Fits the tensors of the output one by one; one error then reports all tensors that do not fit."""

    def __init__(self, views: Sequence[SourceView], options: MergeOptions, keys: Sequence[str]) -> None:
        self._views = views
        self._names = [view.source.name for view in views]
        self._policies, self._overlooked = options.mismatch.by_key(keys)
        self._everywhere = options.mismatch.everywhere
        self.axes = MergeAxes(options.vocabulary, self._names, keys) if options.vocabulary is not None else None
        self._rows = options.vocabulary.size if options.vocabulary is not None else 0
        self._unlike: list[tuple[str, str]] = []
        self._remedies = list(REMEDIES)  # the options that would settle all of ``_unlike``
        self._moved: list[ShapeChange] = []
        self._turned: dict[str, int] = {}  # {key of a tensor that looks transposed: number of its dimensions}
        self._shapes: dict[str, Shape] = {}

    def fitted(self, piece: MergePiece, there: Mapping[int, SourceKey], base: SourceKey | None) -> FittedInputs:
        """Return the tensors that can be merged into the output tensor ``piece``, with the shape of the output.

        ``there`` maps the index of each model to the model's tensor, ``base`` is the tensor of the base. Tensors that
        do not fit are recorded; ``check`` reports them.
        """
        inputs = {number: input_of(self._views, place) for number, place in there.items()}
        own = input_of(self._views, base) if base is not None else None
        first = own or next(iter(inputs.values()))
        every = [*inputs.values(), *([own] if own is not None else [])]
        kinds = {DTYPES[one.dtype].kind for one in every}
        if self.axes is not None and kinds == {"float"}:
            axis = self.axes.axis(piece.key, every)
            if axis is not None:
                shape = (*first.shape[:axis], self._rows, *first.shape[axis + 1 :])
                return FittedInputs(inputs, own, shape, "vocab", axis)
        turned = any(one.shape != first.shape and is_transposed(one.shape, first.shape) for one in every)
        self._turned |= {piece.key: len(first.shape)} if turned else {}
        self._shapes |= {} if turned else {piece.key: first.shape}
        policy = self._policies.get(piece.key, self._everywhere)
        fitting = {number: one for number, one in inputs.items() if self._fits(piece.key, first, one, policy)}
        moves = policy in ("slice", "overlap") and any(not _alike(one.shape, first.shape) for one in fitting.values())
        if moves:
            self._moved += (ShapeChange((piece.key,), one.shape, first.shape) for one in fitting.values())
        return FittedInputs(fitting, own, first.shape, policy if moves else "")

    def notes(self) -> Iterator[str]:
        """Yield notes on patterns that may match too few keys, and on rows mapped by token or merged by position."""
        yield from self._overlooked
        if self.axes is not None:
            yield from self.axes.notes()
        if moved := [one for one in self._moved if one.have != one.want]:
            yield from PositionalRows(moved, {}).merged()
        if self._turned:
            square = square_siblings(self._turned, self._shapes)
            dims = next(iter(self._turned.values()))
            yield transposed_note([*self._turned], square, "ckpt rename --operations", dims)

    def _fits(self, key: str, first: Input, one: Input, policy: str) -> bool:
        """Return whether ``one`` can be merged with ``first``, as it is or after the policy changed its shape.

        If not, and the policy is not ``skip``, the tensor is recorded, and ``check`` reports it.
        """
        same_kind = DTYPES[one.dtype].kind == DTYPES[first.dtype].kind
        if _alike(one.shape, first.shape) and same_kind:
            return True
        pairs = list(zip(one.shape, first.shape, strict=False))
        movable = same_kind and len(one.shape) == len(first.shape) and not DTYPES[one.dtype].is_packed
        fits = {
            "slice": movable and all(h >= w for h, w in pairs),
            "overlap": movable and all(h and w for h, w in pairs),
        }
        if fits.get(policy):
            return True
        if policy != "skip":
            by_token = self.axes is None and movable and sum(h != w for h, w in pairs) == 1
            helps = {"skip": True, **fits, "--vocab": by_token and DTYPES[one.dtype].kind == "float"}
            self._remedies = [remedy for remedy in self._remedies if helps[remedy]]
            shapes = f"{first.dtype} {shape_text(first.shape)} in {self._names[first.source]}, "
            self._unlike.append((key, f"{shapes}{one.dtype} {shape_text(one.shape)} in {self._names[one.source]}"))
        return False

    def check(self) -> None:
        """Raise PlanError if any tensor does not fit; the error lists all of them."""
        if self._unlike:
            turned = next((key for key, _ in self._unlike if key in self._turned), "")
            how = transposed_hint(turned, "ckpt rename --operations", self._turned[turned]) if turned else ""
            *others, last = [REMEDIES[one] for one in self._remedies]
            hint = f"{', '.join(others)}, or {last}" if others else last
            raise PlanError(
                f"tensors differ between the models: {grouped(self._unlike, '{names} {are} {why}')}.",
                hint=f"{f'{how}. Or use' if turned else 'Use'} {hint}.",
                details=[f"{key} is {why}" for key, why in self._unlike],
            )
        if self.axes is not None:
            self.axes.check()


# Notes on tensors that are not merged in the usual way.

FITTED = {"slice": "with their leading parts", "overlap": "in the part that all have"}
"""{policy: how notes describe the merge of tensors whose shapes differ}."""


@dataclass
class MergeNotes:
    """The keys of tensors that are not merged in the usual way, in a list for each note to the user."""

    integers: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    nowhere: list[str] = field(default_factory=list)
    from_base: list[str] = field(default_factory=list)
    unbased: list[str] = field(default_factory=list)
    fewer: list[str] = field(default_factory=list)
    mixed: dict[str, list[str]] = field(default_factory=dict)
    """{dtype of the output: keys of tensors that have several dtypes}."""
    fitted: dict[str, list[str]] = field(default_factory=dict)
    """{policy that makes shapes equal: keys of tensors that have several shapes}."""

    def texts(self, options: MergeOptions) -> Iterator[str]:
        """Yield one note for each kind of unusual tensor that occurred."""
        for keys, what in (
            (self.integers, f"not merged but chosen by --int-buffers {options.int_buffers}"),
            (self.sliced, "of another shape in the model that --int-buffers chooses: its leading part is taken"),
            (self.skipped, "left out, since a model or the base lacks it (--on-missing skip)"),
            (self.nowhere, "left out, since none of the models to merge has it"),
            (self.from_base, "taken from the base for models that lack it (--on-missing base)"),
            (self.unbased, "not in the base, and copied from the only model that has it"),
            (self.fewer, "made from fewer models than given"),
            *(
                (keys, f"with different dtypes in the models: the output has {made}, which holds all values")
                for made, keys in self.mixed.items()
            ),
            *(
                (keys, f"of other shapes in some models, merged {FITTED[policy]} (--on-mismatch {policy})")
                for policy, keys in self.fitted.items()
            ),
        ):
            if keys:
                yield f"{count(len(keys), 'tensor')} {what}: {listing(keys)}"
