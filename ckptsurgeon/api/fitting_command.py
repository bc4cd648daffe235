"""Finds the transplant that makes a checkpoint fit: plans a few candidates, and takes the one that draws least."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..analysis.fits.compare import tied_keys
from ..analysis.fits.fit import Fit
from ..analysis.match.propose import propose
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.in_memory import path_of
from ..errors import CheckpointError, ConfigError
from ..planning.keys.infer_rules import rules_for
from ..planning.keys.spelling import quoted
from ..planning.plan.plan import Plan
from ..planning.target import TargetSpec
from ..tensors.encodings._find import find_codes
from ..util.text import NUMBER_IN_KEY
from ..vocabulary.read import tokens_beside
from .inputs.argument_types import CheckpointLike
from .inputs.inputs import close_plan
from .transplant.transplant import transplant

__all__ = ["with_command"]

MOST_PATTERNS = 6
"""With more patterns than this, one option for all tensors of other shapes is proposed instead."""
SURE = ("same name", "prefix", "name")
"""The evidence of ``match`` that is enough for a proposed command."""


@dataclass(frozen=True)
class _Candidate:
    """Options of a transplant that may make a checkpoint fit."""

    rules: tuple[str, ...] = ()
    vocab: str = ""
    dequantize: bool = False

    def planned(self, source: CheckpointLike, destination: CheckpointLike, task: str | None, root: str | None) -> Plan:
        """Return the plan of the transplant; tensors of other shapes are initialised."""
        return transplant(
            source, destination, map=list(self.rules), vocab=self.vocab or None, on_mismatch="init",
            encoding="dequantize" if self.dequantize else "keep", task=task, root=root,
        )  # fmt: skip

    def words(self) -> Iterator[str]:
        """Yield the options as words of a command."""
        yield from ("--encoding", "dequantize") if self.dequantize else ()
        for rule in self.rules:
            yield from ("--map", rule)
        yield from ("--vocab", self.vocab) if self.vocab else ()


def with_command(
    fit: Fit,
    checkpoint: Checkpoint,
    target: TargetSpec,
    source: CheckpointLike,
    destination: CheckpointLike,
    *,
    task: str | None,
    root: str | None,
) -> Fit:
    """Return the fit with the command that makes the checkpoint fit, and the keys that it renames.

    Without a command that works, a note has the reason.
    """
    best: tuple[int, _Candidate, _Facts] | None = None
    why = ""
    for one in _candidates(fit, checkpoint, target, source, destination):
        try:
            plan = one.planned(source, destination, task, root)
        except CheckpointError as error:
            why = why or error.message
            continue
        facts = _Facts.of(plan)
        close_plan(plan)
        if best is None or facts.drawn < best[0]:
            best = (facts.drawn, one, facts)
        if not facts.drawn:
            break
    if best is None:
        return replace(fit, notes=(*fit.notes, f"no transplant makes it fit: {why}"))
    _, chosen, facts = best
    renamed = {old: new for old, new in facts.renamed.items() if new in fit.missing}
    more = {key: owner for key, owner in tied_keys({*checkpoint, *renamed.values()}, target) if key in fit.missing}
    missing = {key: info for key, info in fit.missing.items() if key not in more}
    fit = replace(fit, missing=missing, tied={**fit.tied, **more})
    words = [*chosen.words(), *_mismatches(facts.mismatched)]
    for name, value in (("--task", task), ("--root", root)):
        words += [name, value] if value is not None else []
    here, there = path_of(source), path_of(destination)
    is_file = all(isinstance(one, (str, os.PathLike)) for one in (source, destination))
    command = ("ckpt", "transplant", here, there, *words, "-o", _output(here, target)) if is_file else ()
    return replace(fit, renamed=renamed, rules=chosen.rules, command=command, counts=facts.counts)


@dataclass(frozen=True)
class _Facts:
    """What a plan does: how many tensors it draws or keeps, which because of their shapes, and what it renames."""

    drawn: int
    mismatched: tuple[str, ...]
    renamed: Mapping[str, str]
    counts: Mapping[str, int]

    @staticmethod
    def of(plan: Plan) -> _Facts:
        drawn = [step for step in plan.steps if step.kind in ("initialised", "kept") and not step.tied_to]
        named = [step for step in plan.steps if step.source_key and not (step.operation or step.tied_to)]
        renamed = {step.source_key: step.key for step in named}
        return _Facts(
            len(drawn),
            tuple(step.key for step in plan.steps if step.reason == "mismatch"),
            {old: new for old, new in renamed.items() if old != new},
            plan.counts,
        )


def _candidates(
    fit: Fit, checkpoint: Checkpoint, target: TargetSpec, source: CheckpointLike, destination: CheckpointLike
) -> Iterator[_Candidate]:
    """Yield the options to try: as few as possible first, then token lists beside both, then rules of ``match``."""
    dequantize = bool(checkpoint.codes) and not find_codes(target.tensors)
    lists = _token_lists(path_of(source), path_of(destination)) if fit.mismatched else ""
    is_renamed = not target.tensors.keys() <= checkpoint.keys()  # also what torch's hooks rename is given by rules
    rules = _sure_rules(checkpoint, target) if is_renamed else ()
    for some in dict.fromkeys(((), rules)):
        if lists:
            yield _Candidate(some, lists, dequantize)
        yield _Candidate(some, "", dequantize)


def _sure_rules(checkpoint: Checkpoint, target: TargetSpec) -> tuple[str, ...]:
    """Return the rules of ``match`` for keys that it matched by name, or whose names speak for it as well.

    A shape alone may be that of another module, as a pooler has that of a head.
    """
    found = propose("", checkpoint, "", target.tensors)
    sure = {key: name for key, name in found.names.items() if found.evidence[key] in SURE or _speaks_for(key, name)}
    layers = {(_layer(key)[0], _layer(name)[0]) for key, name in sure.items()} - {("", "")}
    inside = {key: name for key, name in found.names.items() if (_layer(key)[0], _layer(name)[0]) in layers}
    return tuple(rules_for({**{key: key for key in checkpoint}, **sure, **inside}))


def _speaks_for(key: str, name: str) -> bool:
    """Return whether two keys differ only in a prefix, or are at the same place of equally numbered layers."""
    (layer, rest), (other, same) = _layer(key), _layer(name)
    is_moved = key.endswith(f".{name}") or name.endswith(f".{key}")
    numbers = NUMBER_IN_KEY.findall(layer)
    return is_moved or (bool(numbers) and rest == same and numbers == NUMBER_IN_KEY.findall(other))


def _layer(key: str) -> tuple[str, str]:
    """Return the path of the innermost numbered layer that a key is in, '' if in none, and the rest of the key."""
    found = list(NUMBER_IN_KEY.finditer(key))
    end = found[-1].end() if found else 0
    return key[:end], key[end:]


def _token_lists(first: str, second: str) -> str:
    """Return the token lists beside source and destination, for --vocab; "" if one lacks any, or both are the same."""
    with suppress(ConfigError, OSError):
        paths = (tokens_beside(first), tokens_beside(second))
        if ":" not in "".join(paths) and not os.path.samefile(*paths):
            return ":".join(paths)
    return ""


def _mismatches(keys: Sequence[str]) -> list[str]:
    """Return the options that initialise tensors of other shapes, one for the same tensor of all layers."""
    patterns = dict.fromkeys(NUMBER_IN_KEY.sub("*", quoted(key)) for key in keys)
    if len(patterns) > MOST_PATTERNS:
        return ["--ignore-mismatch"]
    return [word for pattern in patterns for word in ("--on-mismatch", f"{pattern}=init")]


def _output(source: str, target: TargetSpec) -> str:
    """Return the name of the output: a folder for a model of transformers, else a file."""
    name = os.path.splitext(os.path.basename(os.path.normpath(source)))[0] or "model"
    return f"{name}-fits/" if target.kind == "transformers" else f"{name}-fits.safetensors"
