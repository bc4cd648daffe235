"""Notes on output layers that contradict ``tie_word_embeddings``, or are tied in only some of several models."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ....checkpoint.checkpoint import Checkpoint
from ....planning.plan.plan import Plan
from ....planning.plan.step import Step
from ....planning.transplant.by_place import EMBEDDING, HEAD
from ....tensors.find_codes import find_codes
from ....tensors.info import TensorInfo
from ....tensors.quantised.settings import quantisation_of
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of, with_prefix
from ....util.text import escape, listing
from ..config import TIES, model_type_of, tied_by_default, untied_by_default
from ..folder import ModelFolder
from .shape_checks import DescribedTensor

__all__ = [
    "has_new_head",
    "head_notes",
    "missing_head_notes",
    "mixed_head_notes",
    "source_head_notes",
    "stored_head_notes",
    "stored_heads",
    "tied_head",
    "with_heads_said",
    "with_lacking_head_said",
]

UNSHARED = ("bigbird_pegasus", "csm", "flava", "luke", "pop2piano")
"""Model types with classes that do not tie the output layer, even if the configuration says that it is tied."""
HEADED = re.compile(r"(ForCausalLM|LMHeadModel)$")
"""Matches names of transformers' classes with an output layer over the vocabulary."""
ANY_HEAD = re.compile(r"^\D*(head|out|logits|decoder\.weight$)")
"""Matches keys that an output layer may have, plain or quantised. Keys of numbered modules do not match."""


def with_heads_said(plan: Plan, folders: Sequence[ModelFolder], keys: Sequence[Collection[str]], *, tied: bool) -> Plan:
    """Return a plan with a note on each source whose output layer is lost, although the output has its embedding.

    A source may store an output layer, while the output stores none and uses its embedding instead. Or a source may use
    its embedding as output layer, while the output gets a new output layer, or keeps that of the destination.
    ``folders`` and ``keys`` are the folders and the keys of the sources, in their order. ``tied`` is true if an output
    without a stored output layer uses its embedding as output layer.
    """
    notes = [
        note
        for number, (folder, own) in enumerate(zip(folders, keys, strict=False))
        for note in _notes(plan, number, folder, own, tied=tied)
    ]
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _notes(plan: Plan, number: int, folder: ModelFolder, keys: Collection[str], *, tied: bool) -> Iterator[str]:
    name = escape(plan.sources[number].name)
    if not any(EMBEDDING.search(step.key) and _is_from(step, number) for step in plan.steps):
        return
    heads = [step for step in plan.steps if HEAD.search(step.key)]
    unused = next((key for source, key in plan.unexpected if source == number and HEAD.search(key)), "")
    if unused and not heads and tied:
        yield (
            f"the output uses its embedding as output layer ({TIES}); {escape(unused)} of {name} is not used, "
            "though its values may differ from those of the embedding"
        )
    if folder.said_tied and not any(map(HEAD.search, keys)):
        for step in heads:
            if not any(_is_from(step, one) for one in range(len(plan.sources))) or step.op == "keep":
                made = "keeps the destination's values" if step.op == "keep" else "is initialised"
                yield (
                    f"{escape(step.key)} {made}, although the output gets the embedding of {name}, which {name} also "
                    f"uses as output layer ({TIES})"
                )


def _is_from(step: Step, source: int) -> bool:
    return any(one.source == source for one in step.inputs)


def mixed_head_notes(plan: Plan, folders: Sequence[ModelFolder]) -> Iterator[str]:
    """Yield a note on an output layer that is tied to the embedding in some of the merged models, but not in all.

    ``folders`` are the folders of the sources, in their order.
    """
    of_path = {source.path: number for number, source in reversed([*enumerate(plan.sources[: len(folders)])])}
    for step in plan.steps:
        if not HEAD.search(step.key) or step.tied_to:
            continue
        # Decoded copies of the sources come after the sources in ``plan.sources``, with the same paths.
        models = {of_path.get(plan.sources[one.source].path): one.key for one in step.inputs}
        tied = {one: key for one, key in models.items() if one is not None and folders[one].is_tied}
        others = [plan.sources[one].name for one in models if one is not None and one not in tied]
        if tied and others:
            embeddings = [f"{escape(key)} of {escape(plan.sources[number].name)}" for number, key in tied.items()]
            yield (
                f"{escape(step.key)} is tied to the embedding in some models ({listing(embeddings, where='')}), but "
                f"not in {listing(others)} ({TIES}): the output does not tie the two"
            )


def head_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[Note]:
    """Yield a note on an output layer that is stored although it is tied, or that is missing although it is not tied.

    ``folder`` has the configuration of these weights.
    """
    if not folder.said_tied:
        yield from missing_head_notes(tensors, folder)
    yield from stored_head_notes(tensors, folder)


@notes_of(NoteKind.STORED_TIE)
def stored_head_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each output layer that is stored although the configuration ties it to the embedding.

    If the configuration does not set ``tie_word_embeddings``, the default of the model type decides.
    """
    for embedding, head in stored_heads(tensors, folder):
        said = f"config.json says that {escape(embedding)} is the output layer ({TIES})"
        if folder.said_tied is None:
            kind = escape(model_type_of(folder.config))
            said = f"config.json does not set {TIES}: the output layer of {kind} is then {escape(embedding)}"
        stored = f"{escape(head)} is stored too"
        yield f"{said}, but {stored}: if the two differ, transformers versions before 5 use only the embedding"


def source_head_notes(checkpoint: Checkpoint, folder: ModelFolder) -> list[Note]:
    """Return a note on an output layer that a source lacks although it is not tied; none for a single shard."""
    if checkpoint.elsewhere or not folder.config:
        return []
    tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in checkpoint.items()]
    return [*missing_head_notes(tensors, folder)]


def with_lacking_head_said(plan: Plan, notes: Sequence[Note]) -> Plan:
    """Return ``plan`` with ``notes`` on a missing output layer, unless the plan itself makes an output layer.

    The notes are those of ``source_head_notes``. They are shown even if the output is a single file. If no output can
    get the source's config.json, for example because tensors are renamed, each note begins with the path of the source.
    """
    if not notes or any(_is_head(step.key) for step in plan.steps):
        return plan
    target = replace(plan.target, notes=tuple(note for note in plan.target.notes if note not in notes))
    of_source = [with_prefix(f"{escape(plan.sources[0].name)}: ", note) for note in notes if note not in plan.notes]
    return replace(plan, target=target, notes=(*plan.notes, *of_source))


def missing_head_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[Note]:
    """Yield a note on an output layer that is missing although it is not tied."""
    if not folder.said_tied and _embedding(tensors) is not None:
        yield from _wanted(tensors, folder)


def stored_heads(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> list[tuple[str, str]]:
    """Return (key of the embedding, key of the output layer) for each output layer that is stored although it is tied.

    It is tied by config.json or, if that does not say, by the default of the model type.
    """
    embedding = _embedding(tensors)
    tied = folder.said_tied if folder.said_tied is not None else tied_by_default(folder.config)
    if embedding is None or not tied or folder.config.get("model_type") in UNSHARED:
        return []
    plain = [one.key for one in tensors if one.shape[1:] == embedding.shape[1:] and not one.tied_to]
    heads = filter(HEAD.search, dict.fromkeys((*plain, *_coded_heads(tensors, folder))))
    return [(embedding.key, head) for head in heads]


def _embedding(tensors: Sequence[DescribedTensor]) -> DescribedTensor | None:
    return next((one for one in tensors if EMBEDDING.search(one.key) and len(one.shape) == 2), None)


def _coded_heads(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> list[str]:
    """Return the keys of quantised output layers as if stored plainly: ``lm_head.weight`` for ``lm_head.qweight``."""
    modules = {one.key: re.split(r"\.weight\.|\.\w+$", one.key)[0] for one in tensors}
    own = [one for one in tensors if not one.tied_to and HEAD.search(f"{modules[one.key]}.weight")]
    infos = {one.key: TensorInfo(one.dtype, one.shape) for one in own}
    return [one.name for one in find_codes(infos, lambda: quantisation_of(folder.config)).tensors if one.codes]


@notes_of(NoteKind.MISSING_TENSORS)
def _wanted(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the output layer is missing, although neither the configuration nor the model type ties it."""
    flag = f"says that the output layer is not the embedding ({TIES}: false)"
    if folder.said_tied is None:
        kind = escape(model_type_of(folder.config))
        flag = f"does not set {TIES}: the output layer of {kind} is then not the embedding"
        if not untied_by_default(folder.config):
            return
    wants = any(HEADED.search(name) for name in _architectures(folder))
    if wants and not any(_is_head(one.key) for one in tensors):
        yield f"config.json {flag}, but there is no output layer"


def _is_head(key: str) -> bool:
    return ANY_HEAD.search(key) is not None and EMBEDDING.search(key) is None


def _architectures(folder: ModelFolder) -> list[str]:
    names = folder.config.get("architectures")
    return [one for one in names if isinstance(one, str)] if isinstance(names, list) else []


def tied_head(folder: ModelFolder, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return {key of the output layer: key of the embedding} if the output layer is not stored because it is tied.

    The mapping is empty if the model stores its output layer, does not tie it, or is not a language model.
    """
    if not folder.is_tied or not any(HEADED.search(name) for name in _architectures(folder)):
        return {}
    embeddings = [key for key, info in tensors.items() if EMBEDDING.search(key) and len(info.shape) == 2]
    if len(embeddings) != 1 or tensors[embeddings[0]].place is None or any(map(HEAD.search, tensors)):
        return {}
    name = "embed_out" if model_type_of(folder.config).startswith("gpt_neox") else "lm_head"
    return {f"{name}.weight": embeddings[0]}


def has_new_head(plan: Plan, base: Collection[str]) -> bool:
    """Return whether adapters give a base with a tied output layer a separate output layer.

    ``base`` has the keys of the base.
    """
    heads = [step for step in plan.steps if HEAD.search(step.key)]
    embeddings = [step for step in plan.steps if EMBEDDING.search(step.key)]
    changed = any(map(_is_changed, embeddings))
    return bool(embeddings) and any(
        changed or _is_changed(step) or step.key not in base for step in heads if not step.tied_to
    )


def _is_changed(step: Step) -> bool:
    return step.op == "lora" or not _is_from(step, 0)
