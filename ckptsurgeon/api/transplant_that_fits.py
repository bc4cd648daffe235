"""Finds the transplant that makes a checkpoint fit: the plan, among several, that initialises the fewest tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..analysis.fits.compare import tied_keys
from ..analysis.fits.fit import Fit
from ..analysis.match.proposal import Proposal
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import path_of
from ..errors import CheckpointError, ConfigError
from ..planning.keys.infer_rules import rules_for
from ..planning.keys.spelling import quoted
from ..planning.plan.plan import Plan
from ..planning.target import TargetSpec
from ..planning.transplant.by_place import EMBEDDING, HEAD, is_embedding
from ..tensors.find_codes import find_codes
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import NUMBER_IN_KEY, escape
from ..vocabulary.beside_model import tokens_beside
from .inputs.argument_types import CheckpointLike
from .inputs.inputs import close_plan
from .model_folder.folder import model_folder
from .transplant.transplant import transplant

__all__ = ["with_command"]

MOST_PATTERNS = 6
"""The largest number of ``--on-mismatch`` options in a command; if more are needed, it has ``--ignore-mismatch``."""
SURE = ("same name", "prefix", "name")
"""The kinds of evidence of ``match`` that are reliable enough for a proposed command."""


@dataclass(frozen=True)
class _Candidate:
    """Options of a transplant that may make a checkpoint fit.

    ``copied`` names two modules, FROM:TO: then the checkpoint is a source twice, and the second time, only its module
    FROM is used, as the module TO.
    """

    rules: tuple[str, ...] = ()
    vocab: str = ""
    dequantize: bool = False
    copied: str = ""

    def planned(self, source: CheckpointLike, destination: CheckpointLike, task: str | None, root: str | None) -> Plan:
        """Return the plan of the transplant with these options; tensors whose shapes differ are initialised."""
        sources = [source, f"{path_of(source)}:{self.copied}"] if self.copied else source
        return transplant(
            sources, destination, map=list(self.rules), vocab=self.vocab or None, on_mismatch="init",
            encoding="dequantize" if self.dequantize else "keep", task=task, root=root,
        )  # fmt: skip

    def words(self) -> Iterator[str]:
        """Yield the options as words of a command line."""
        yield from ("--encoding", "dequantize") if self.dequantize else ()
        for rule in self.rules:
            yield from ("--map", rule)
        yield from ("--vocab", self.vocab) if self.vocab else ()

    def sources(self, path: str) -> tuple[str, ...]:
        """Return the sources as words of a command line; ``path`` is the path of the checkpoint."""
        return ("--source", path, "--source", f"{path}:{self.copied}") if self.copied else (path,)


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
    """Return ``fit`` with the command that makes the checkpoint fit, and the keys that this command renames.

    If no command works, a note gives the reason.
    """
    best: tuple[int, _Candidate, _Facts] | None = None
    why = ""
    proposal = _proposal(fit, checkpoint, target)
    fit = replace(fit, notes=(*fit.notes, *(proposal.notes if proposal is not None else ())))
    for one in _candidates(fit, checkpoint, target, source, destination, proposal):
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
        failed = Note(NoteKind.SERIOUS, f"no transplant makes the checkpoint fit: {why}")
        return replace(fit, notes=(*fit.notes, failed))
    _, chosen, facts = best
    codes = find_codes(target.tensors).by_key
    renamed = {
        old: new
        for old, new in facts.renamed.items()
        if new in fit.missing and (new not in codes or codes[new].codes == new)  # a scale is not a renamed weight
    }
    more = {key: owner for key, owner in tied_keys({*checkpoint, *renamed.values()}, target) if key in fit.missing}
    missing = {key: info for key, info in fit.missing.items() if key not in more}
    fit = replace(fit, missing=missing, tied={**fit.tied, **more})
    words = [*chosen.words(), *_mismatches(facts.mismatched)]
    for name, value in (("--task", task), ("--root", root)):
        words += [name, value] if value is not None else []
    here, there = path_of(source), path_of(destination)
    is_file = all(isinstance(one, (str, os.PathLike)) for one in (source, destination))
    command = (
        ("ckpt", "transplant", *chosen.sources(here), there, *words, "-o", _output(here, target)) if is_file else ()
    )
    if not is_file:
        call = _call(chosen, facts, source, destination, task=task, root=root)
        made = ", ".join(f"{number} {kind}" for kind, number in facts.counts.items())
        fit = replace(fit, notes=(*fit.notes, f"in Python, this makes it fit ({made}): {call}"))
    if command and chosen.copied:
        embedding, _, head = chosen.copied.partition(":")
        tied = f"{escape(fit.first)} uses its embedding as output layer (tie_word_embeddings)"
        said = f"{tied}: the command copies {escape(embedding)} into {escape(head)}"
        fit = replace(fit, notes=(*fit.notes, Note(NoteKind.REMARK, said)))
    return replace(fit, renamed=renamed, rules=chosen.rules, command=command, counts=facts.counts)


def _call(
    chosen: _Candidate, facts: _Facts, source: CheckpointLike, destination: CheckpointLike,
    *, task: str | None, root: str | None,
) -> str:  # fmt: skip
    """Return the call of the Python API that carries out the transplant; a live module is loaded in place.

    Tensors in memory have the names ``source``, ``model`` and ``destination`` in it.
    """
    path = path_of(source)
    sources = repr([path, f"{path}:{chosen.copied}"] if chosen.copied else path)
    given = sources if isinstance(source, (str, os.PathLike)) else "source"
    into = repr(path_of(destination)) if isinstance(destination, (str, os.PathLike)) else "destination"
    is_module = into == "destination" and not isinstance(destination, Mapping)
    policies = _policies(facts.mismatched)
    said = {
        "map": list(chosen.rules), "vocab": chosen.vocab, "encoding": "dequantize" if chosen.dequantize else "",
        "on_mismatch": policies or ("init" if facts.mismatched else ""), "root": root,
        "task": None if is_module else task,
    }  # fmt: skip
    options = "".join(f", {name}={value!r}" for name, value in said.items() if value)
    first = f"cs.load_into(model, {given}" if is_module else f"cs.transplant({given}, {into}"
    return escape(f"{first}{options})", 1000)


def _proposal(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Proposal | None:
    """Return the proposal of ``match``, or None if no tensor can be renamed.

    No tensor can be renamed if the destination has all keys, or if it has those of the checkpoint, with their shapes.
    """
    has_all = target.tensors.keys() <= checkpoint.keys()  # else load hooks may rename keys
    if has_all or (checkpoint.keys() <= target.tensors.keys() and not fit.mismatched):
        return None
    from ..analysis.match.propose import propose  # imports numpy

    return propose("", checkpoint, "", target.tensors)


@dataclass(frozen=True)
class _Facts:
    """Facts on a plan: the tensors that do not come from the source, and the renamed keys.

    ``drawn`` is the number of tensors that are initialised or keep the destination's values. ``mismatched`` has the
    keys of the tensors whose shapes differ in source and destination. ``renamed`` maps source keys to new keys.
    ``counts`` has the number of tensors in each class (copied, initialised and others).
    """

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
    fit: Fit,
    checkpoint: Checkpoint,
    target: TargetSpec,
    source: CheckpointLike,
    destination: CheckpointLike,
    proposal: Proposal | None,
) -> Iterator[_Candidate]:
    """Yield the options of transplants to try: first without rules, then with the rules FROM=TO of ``proposal``.

    ``proposal`` is the result of ``match``; without one, there are no rules. If shapes differ and both folders have a
    token list, the options are tried with ``--vocab`` first, then without.
    """
    dequantize = bool(checkpoint.codes) and not find_codes(target.tensors)
    lists = _token_lists(path_of(source), path_of(destination)) if fit.mismatched else ""
    rules = _sure_rules(proposal, checkpoint) if proposal is not None else ()
    copied = _untied(fit, checkpoint, target) if isinstance(source, (str, os.PathLike)) else ""
    for some in dict.fromkeys(((), rules)):
        for module in dict.fromkeys((copied, "")):
            if lists:
                yield _Candidate(some, lists, dequantize, module)
            yield _Candidate(some, "", dequantize, module)


def _untied(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> str:
    """Return the modules EMBEDDING:HEAD if a checkpoint ties its output layer to its embedding and ``target`` does not.

    With a copy of the embedding as output layer, ``target`` computes the same as the checkpoint. Returns '' for any
    other checkpoint.
    """
    head = next((key for key in fit.missing if HEAD.search(key)), "")
    found = [
        key for key in checkpoint if EMBEDDING.search(key) and is_embedding(key) and len(checkpoint[key].shape) == 2
    ]
    if not head or len(found) != 1 or ":" in checkpoint.path or not model_folder(checkpoint).is_tied:
        return ""
    ends = found[0].removesuffix(".weight"), head.removesuffix(".weight")
    is_plain = found[0] != ends[0] and head != ends[1] and not checkpoint.codes
    return ":".join(ends) if is_plain and target.tensors[head].shape[1:] == checkpoint[found[0]].shape[1:] else ""


def _sure_rules(found: Proposal, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the rules FROM=TO of the proposal ``found`` for keys that are matched by name, not by shape alone.

    Different modules, such as a pooler and a head, can have the same shapes. A key that is matched by shape alone is
    included if another key of its layer is matched by name.
    """
    sure = {key: name for key, name in found.names.items() if found.evidence[key] in SURE or _has_like_name(key, name)}
    layers = {(_layer(key)[0], _layer(name)[0]) for key, name in sure.items()} - {("", "")}
    inside = {key: name for key, name in found.names.items() if (_layer(key)[0], _layer(name)[0]) in layers}
    return tuple(rules_for({**{key: key for key in checkpoint}, **sure, **inside}))


def _has_like_name(key: str, name: str) -> bool:
    """Return whether two keys name the same tensor: they differ only in a prefix, or in the name of a list of layers.

    For example, ``encoder.layer.3.mlp.weight`` and ``layers.3.mlp.weight`` name the same tensor of layer 3.
    """
    (layer, rest), (other, same) = _layer(key), _layer(name)
    is_moved = key.endswith(f".{name}") or name.endswith(f".{key}")
    numbers = NUMBER_IN_KEY.findall(layer)
    return is_moved or (bool(numbers) and rest == same and numbers == NUMBER_IN_KEY.findall(other))


def _layer(key: str) -> tuple[str, str]:
    """Return the two parts of a key that is split after its last number, such as ``layers.3`` and ``.mlp.weight``.

    For a key without a number, the parts are '' and the key.
    """
    found = list(NUMBER_IN_KEY.finditer(key))
    end = found[-1].end() if found else 0
    return key[:end], key[end:]


def _token_lists(first: str, second: str) -> str:
    """Return the token lists in the folders of source and destination, as SRC:DST for ``--vocab``.

    Returns "" if a folder has no token list, or if both are the same file.
    """
    with suppress(ConfigError, OSError):
        paths = (tokens_beside(first), tokens_beside(second))
        if ":" not in "".join(paths) and not os.path.samefile(*paths):
            return ":".join(paths)
    return ""


def _mismatches(keys: Sequence[str]) -> list[str]:
    """Return the words of the command-line options that initialise the tensors ``keys``, whose shapes differ.

    A tensor that is in many layers gets one ``--on-mismatch`` option for all of them; if this takes too many options,
    ``--ignore-mismatch`` is returned.
    """
    policies = _policies(keys)
    if keys and not policies:
        return ["--ignore-mismatch"]
    return [word for policy in policies for word in ("--on-mismatch", policy)]


def _policies(keys: Sequence[str]) -> list[str]:
    """Return the policies PATTERN=init for the tensors ``keys``; none if there are more than ``MOST_PATTERNS``."""
    patterns = dict.fromkeys(NUMBER_IN_KEY.sub("*", quoted(key)) for key in keys)
    return [f"{pattern}=init" for pattern in patterns] if len(patterns) <= MOST_PATTERNS else []


def _output(source: str, target: TargetSpec) -> str:
    """Return the output path of the proposed command: a folder for a model of transformers, else a file."""
    name = os.path.splitext(os.path.basename(os.path.normpath(source)))[0]
    name = name if name.strip(".") else "model"
    return f"{name}-fits/" if target.kind == "transformers" else f"{name}-fits.safetensors"
