"""Options of a merge for models that differ, and notes on tensors that are not merged in the usual way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ...errors import ConfigError
from ...methods.merge._method import Method
from ...tensors.dtypes import DTYPES, dtype_named
from ...util.text import brief_repr, count, escape, listing
from ..keys.pattern import OptionPattern, with_equals
from ..keys.pattern_hints import matched
from .statistics import ModelStatistics
from .values import ParameterValues
from .vocabulary import MergeVocabulary

__all__ = ["FITTED", "MERGE_POLICIES", "MergeMismatch", "MergeNotes", "MergeOptions", "MergePiece", "SourceKey"]

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

        Raises ConfigError for an unknown policy, or for two policies for all tensors.
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

    ``statistics`` maps the index of each model to its statistics, if the method uses them.
    """

    on_missing: str = "error"
    mismatch: MergeMismatch = field(default_factory=MergeMismatch)
    int_buffers: str = "last"
    dtype: str = ""
    compute: str = ""
    vocabulary: MergeVocabulary | None = None
    device: str = ""
    statistics: Mapping[int, ModelStatistics] = field(default_factory=dict)

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


class SourceKey(NamedTuple):
    """A tensor of a model: the model's index in the sources, and the tensor's key in the model."""

    source: int
    key: str


class MergePiece(NamedTuple):
    """A tensor of the output, the tensors of the models and the base that are merged into it, and the merge method.

    ``models`` has an entry for each model, even if it lacks the tensor. If ``values`` depend on layers, ``depth`` is 0
    in the first layer and 1 in the last.
    """

    key: str
    models: tuple[SourceKey, ...]
    base: SourceKey | None
    method: Method
    values: ParameterValues
    depth: float


# Notes on tensors that are not merged in the usual way.

FITTED = {"slice": "with their leading parts", "overlap": "in the part that all have"}
"""{policy: how notes describe the merge of tensors whose shapes differ}."""


@dataclass
class MergeNotes:
    """The keys of tensors that are not merged in the usual way, in a list for each note to the user."""

    integers: list[str] = field(default_factory=list)
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
            (self.skipped, "left out, since not all models have it (--on-missing skip)"),
            (self.nowhere, "left out, since none of the models to merge has it"),
            (self.from_base, "taken from the base for models that lack it (--on-missing base)"),
            (self.unbased, "not in the base, and copied from the only model that has it"),
            (self.fewer, "merged from fewer models than given"),
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
