"""Chooses the matrices of a model to quantise, and gives the reasons why other matrices are not quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.keys.pattern import KeyPattern
from ...planning.keys.pattern_hints import chosen_keys
from ...planning.keys.renaming import KeyMatcher
from ...planning.keys.spelling import quoted
from ...tensors.encoders._schemes import Scheme, misfit
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing
from ..model_folder.folder import ModelFolder
from .linear_layers import HEAD, ROUTER, LinearLayers, linear_layers

__all__ = ["ChosenMatrices", "chosen_matrices"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_IN_ONE = re.compile(r"\.experts\.(?:\w+|\w+\.weight)$")
"""Matches keys of tensors that stack the weights of all experts of a layer."""
SHOWN = 3


@dataclass(frozen=True)
class ChosenMatrices:
    """The keys of the matrices to quantise, and the matrices that are not quantised.

    ``plain`` maps the key of each matrix that is not quantised to the reason. ``absent`` are linear layers of the
    model's class whose weight is not stored, such as a tied output layer. ``notes`` are the messages for the user.
    """

    keys: tuple[str, ...]
    plain: Mapping[str, str]
    absent: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def plain_modules(self) -> list[str]:
        """The modules that a loader must exclude from quantisation: layers whose matrix is not quantised."""
        named = [key.removesuffix(".weight") for key in self.plain if key.endswith(".weight")]
        named += [key[: key.index(".experts.") + len(".experts")] for key in self.plain if _IN_ONE.search(key)]
        return [*dict.fromkeys((*named, *self.absent))]

    def patterns(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Return patterns that match exactly the keys to quantise, among all keys in ``tensors``.

        A pattern can match the same matrix in many layers and experts.
        """
        found: dict[str, list[str]] = {}
        for key in self.keys:
            found.setdefault(_NUMBER.sub("*", quoted(key)), []).append(key)
        hits = KeyMatcher([KeyPattern(pattern) for pattern in found]).hits(tensors)
        pairs = zip(found.items(), hits, strict=True)
        exact = ([pattern] if hit == keys else _listed(pattern, keys) for (pattern, keys), hit in pairs)
        return [pattern for patterns in exact for pattern in patterns]


def _listed(pattern: str, keys: Sequence[str]) -> Iterator[str]:
    """Yield patterns that match only ``keys``, with lists of indices such as ``layers.{1,2}.up``.

    ``pattern`` has a ``*`` for each number, and matches all of these keys, but others too.
    """
    by_first: dict[str, list[tuple[str, ...]]] = {}
    for key in keys:
        first, *rest = _NUMBER.findall(key)
        by_first.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for first, others in by_first.items():
        alike.setdefault(tuple(others), []).append(first)
    for rests, firsts in alike.items():
        sides: list[list[str]] = [[*dict.fromkeys(numbers)] for numbers in zip(*rests, strict=True)]
        whole = prod(map(len, sides)) == len(rests)
        single = ([[number] for number in rest] for rest in rests)
        for each in [sides] if whole else single:
            lists = iter([firsts, *each])
            yield re.sub(r"\*", lambda _: _one_of(next(lists)), pattern)  # noqa: B023


def _one_of(numbers: Sequence[str]) -> str:
    return f"{{{','.join(numbers)}}}" if len(numbers) > 1 else numbers[0]


def chosen_matrices(
    checkpoint: Checkpoint,
    folder: ModelFolder,
    scheme: Scheme,
    include: Sequence[str],
    exclude: Sequence[str],
) -> ChosenMatrices:
    """Return the matrices to quantise: weights of linear layers, but not of output layers and routers of experts.

    ``include`` and ``exclude`` are patterns that select keys. An output layer or a router is quantised only if a
    pattern in ``include`` contains the layer's name. Raises PatternError for a pattern that matches nothing, PlanError
    if no matrix is left, or if a matrix does not fit the scheme.
    """
    keys = list(checkpoint)
    layers = linear_layers(checkpoint, folder)
    wanted = chosen_keys(keys, include, exclude)
    wanted_keys, excluded = set(wanted.keys), KeyMatcher([KeyPattern(one) for one in exclude])
    plain: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for key in keys:
        if len(checkpoint[key].shape) == 3 and _IN_ONE.search(key):
            plain[key] = "experts in one tensor"
        if len(checkpoint[key].shape) != 2:
            continue
        why = _why_plain(key, layers, wanted_keys, include, excluded)
        misfits = misfit(checkpoint[key], scheme)
        if why or (misfits and " columns " not in misfits):
            plain[key] = why or misfits
        else:
            chosen[key] = misfits
    _keep_ties(checkpoint, chosen, plain)
    _check(checkpoint, chosen, plain, scheme)
    vectors = [key for key in wanted.keys if len(checkpoint[key].shape) != 2 and key not in plain]
    notes = [*wanted.notes, *_said(scheme, chosen, plain, vectors, layers)]
    return ChosenMatrices(tuple(chosen), plain, layers.absent, tuple(notes))


def _why_plain(key: str, layers: LinearLayers, wanted: set[str], include: Sequence[str], excluded: KeyMatcher) -> str:
    """Return the reason why a matrix is not quantised; '' if it is quantised.

    ``layers`` has the kinds of all matrices, and ``wanted`` the keys that the patterns ``include`` and ``exclude``
    select.
    """
    why = layers.why[key]
    named = why in (HEAD, ROUTER) and any(key.split(".")[-2] in one.split(".") for one in include)
    if why and not named:
        return why
    if key in wanted:
        return ""
    return "--exclude" if excluded.match(key) else "not in --include"


def _keep_ties(checkpoint: Checkpoint, chosen: dict[str, str], plain: dict[str, str]) -> None:
    """Move the matrices that are tied to an unquantised matrix from ``chosen`` to ``plain``: they stay unquantised."""
    groups: dict[str, list[str]] = {}
    for key, owner in checkpoint.ties.items():
        groups.setdefault(owner, [owner]).append(key)
    for keys in groups.values():
        other = next((key for key in keys if key not in chosen), "")
        for key in keys if other else ():
            if chosen.pop(key, None) is not None:
                plain[key] = f"tied to {other}"


def _check(checkpoint: Checkpoint, chosen: Mapping[str, str], plain: Mapping[str, str], scheme: Scheme) -> None:
    """Raise PlanError if nothing is left to quantise, or if a chosen matrix has a size that the scheme forbids."""
    misfits = {key: why for key, why in chosen.items() if why}
    if misfits:
        (key, why), *others = misfits.items()
        more = f"; {count(len(others), 'other')} too: {listing([one for one, _ in others], SHOWN)}" if others else ""
        raise PlanError(
            f"{escape(key)} cannot be quantised to {scheme.name}: {why}{more}.",
            hint=f"Leave the matrix unquantised with --exclude {escape(key)}, or use fp8-channel, fp8-block or int8, "
            "which accept any size.",
            details=[f"{one}: {text}" for one, text in misfits.items()],
        )
    if not chosen:
        reasons = f" ({listing([*dict.fromkeys(plain.values())], SHOWN, where='')})" if plain else ""
        raise PlanError(
            f"{escape(checkpoint.path)} has no matrix to quantise{reasons}.",
            hint="Only weights of linear layers are quantised: floating-point matrices with keys *.weight.",
        )


def _said(
    scheme: Scheme, chosen: Mapping[str, str], plain: Mapping[str, str], vectors: Sequence[str], layers: LinearLayers
) -> Iterator[str]:
    """Yield notes on the number of quantised matrices, and on the reasons why other matrices are not quantised."""
    by = f"linear layers of {escape(layers.known_by)}" if layers.known_by else "linear layers, guessed from their names"
    yield f"quantised to {scheme.name}: {len(chosen)} of {count(len(chosen) + len(plain), 'matrix', 'matrices')} ({by})"
    reasons: dict[str, list[str]] = {}
    for key, why in plain.items():
        reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        yield f"not quantised ({escape(why)}): {listing(keys, SHOWN, where='')}"
    if scheme.of_experts and any(".experts." in key for key in chosen):
        yield scheme.of_experts
    if vectors:
        yield f"not quantised (not a matrix): {count(len(vectors), 'tensor')}"
