"""Selects, by patterns, the tensors whose changes a patch stores approximately (low rank, signs), not exactly."""

from __future__ import annotations

from dataclasses import dataclass

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import matched
from ...util.text import count, listing
from .argument_types import Patterns

__all__ = ["Approximated", "approximated"]

RANK = 16
"""The rank of factors if none is given, as for ``lora_extract``."""


@dataclass(frozen=True)
class Approximated:
    """The keys of tensors whose changes are approximated by signs, or by factors of the rank ``rank``; and notes."""

    signs: frozenset[str]
    low_rank: frozenset[str]
    rank: int
    notes: tuple[str, ...]


def approximated(
    old: Checkpoint, new: Checkpoint, signs: Patterns, low_rank: Patterns, rank: int | None, exact: Patterns
) -> Approximated:
    """Return which tensors of ``new`` are approximated, and notes on patterns that match fewer keys than expected.

    Tied tensors are approximated if a pattern selects one of them and ``exact`` none. Raises ConfigError for options
    that contradict each other, PatternError for a pattern that matches nothing, PlanError if the patterns of an option
    select only parts of quantised weights.
    """
    given = {"--signs": _listed(signs), "--low-rank": _listed(low_rank), "--exact": _listed(exact)}
    _check_options(given, rank)
    keys, notes, owners = [*new], list[str](), list[set[str]]()
    for flag, patterns in given.items():
        hits, said = matched([(f"{flag} {one}", KeyPattern(one)) for one in patterns], keys, "new")
        notes += said
        owners.append({new.ties.get(key, key) for hit in hits for key in hit})
    chosen = []
    for flag, found in zip(given, owners[:2], strict=False):
        wanted = {key for key in keys if new.ties.get(key, key) in found - owners[2]}
        wanted, said = _without_quantised(flag, wanted, old, new)
        chosen.append(frozenset(wanted))
        notes += said
    if both := [key for key in keys if key in chosen[0] & chosen[1]]:
        raise ConfigError(
            f"--signs and --low-rank both select {count(len(both), 'tensor')}: {listing(both, 3)}.",
            hint="Change the patterns: a tensor can only be approximated in one way.",
            details=both,
        )
    return Approximated(chosen[0], chosen[1], RANK if rank is None else rank, tuple(dict.fromkeys(notes)))


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def _check_options(given: dict[str, list[str]], rank: int | None) -> None:
    """Raise ConfigError if an option is given without the option that it needs, or if the rank is below 1."""
    if given["--exact"] and not given["--signs"] and not given["--low-rank"]:
        raise ConfigError(
            "--exact needs --signs or --low-rank.",
            hint="Add one of them, or leave --exact out: without both, all tensors are stored exactly.",
        )
    if rank is not None and not given["--low-rank"]:
        raise ConfigError("--rank needs --low-rank.", hint="Add --low-rank, with a pattern of the matrices to factor.")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} is not a valid rank.", hint="Give a number of at least 1.")


def _without_quantised(flag: str, chosen: set[str], old: Checkpoint, new: Checkpoint) -> tuple[set[str], list[str]]:
    """Return the keys of ``chosen`` that belong to no quantised weight in either checkpoint, and a note on the rest.

    ``flag`` is the option that selects the keys, for the message. Raises PlanError if no key is left. A scale
    multiplies many codes, and codes may be packed into floats, so neither may be approximated as if it were a weight.
    """
    parts = {**old.codes.by_key, **new.codes.by_key}
    coded = {key: parts[key] for key in new if key in chosen and key in parts}
    if not coded:
        return chosen, []
    names = list(dict.fromkeys(one.name for one in coded.values()))
    if len(coded) == len(chosen):
        methods = listing(list(dict.fromkeys(one.method for one in coded.values())), where="")
        raise PlanError(
            f"the patterns select only parts of quantised weights ({methods}), which are codes and scales, and not "
            f"weights: {listing(names, 3)}.",
            hint=f"Leave {flag} out, or select other tensors: in a patch, quantised weights are always stored exactly.",
            details=list(coded),
        )
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    said = f"{count(len(names), 'quantised weight')} {are} stored exactly, although the patterns select {them}"
    return chosen - coded.keys(), [f"{said}: {listing(names, 3)}"]
