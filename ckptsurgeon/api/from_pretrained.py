"""Finds the class whose ``from_pretrained`` loads a checkpoint that ``load_state_dict(strict=True)`` refuses.

``from_pretrained`` converts older layouts, such as one tensor for each expert. It initialises some tensors of a class
itself, and ignores others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from ..analysis.fits.compare import compared
from ..analysis.fits.fit import Fit
from ..checkpoint.checkpoint import Checkpoint
from ..destinations.hf.files import CONFIG
from ..destinations.hf.ignored_keys import ignored_keys
from ..errors import CheckpointError
from ..planning.target import KnownLayout, TargetSpec
from ..storage.json_text import read_json
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing
from .inputs.operations import operate

__all__ = ["class_of", "with_loader"]

ANY = "AutoModel"
"""The class that loads a model whose config.json has no ``architectures``."""


def with_loader(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Fit:
    """Return ``fit`` with the class whose ``from_pretrained`` loads the whole checkpoint, and notes on its effects.

    The class is set only if ``from_pretrained`` initialises no tensor that the class should get from a checkpoint, and
    uses all tensors of the checkpoint except those that the class ignores. ``fit`` is returned unchanged if the
    destination is not a model of transformers, or if the checkpoint fits as it is.
    """
    if target.kind != "transformers" or target.recognise is None or fit.strict:
        return fit
    name = class_of(target)
    known, loads = KnownLayout(), False
    with suppress(CheckpointError):  # an older layout may have shapes that cannot be converted
        known = target.recognise(checkpoint)
        loads = not fit.stripped and _loads(fit, _converted(checkpoint, known), target, name)
    made = _matching(ignored_keys(name, target.cache_key, is_missing=True), fit.missing)
    unused = [key for key in _matching(ignored_keys(name, target.cache_key), fit.unexpected) if key not in known.names]
    converts = bool(known.operations) or 2 * len(known.names) > len(fit.missing)
    notes = tuple(_notes(name, known.by if converts else "", made, unused))
    return replace(fit, loader=name if loads else "", notes=(*fit.notes, *notes))


def _notes(name: str, converter: str, made: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    """Yield notes on tensors that ``from_pretrained`` of the class ``name`` converts, initialises or ignores.

    ``made`` are the tensors that it initialises itself, and ``unused`` those that it ignores. ``converter`` is the
    library that converts the layout of the checkpoint; '' if it converts only a few tensors.
    """
    if converter:
        yield f"from_pretrained of {converter} renames or converts tensors of this layout itself"
    if made:
        named = listing(made, 3, where="")
        said = f"from_pretrained of {escape(name)} initialises {named} itself, and accepts checkpoints without them"
        yield Note(NoteKind.MISSING_TENSORS, said)
    if unused:
        ignored = f"{count(len(unused), 'tensor')}: {listing(unused, 3, where='')}"
        yield f"from_pretrained of {escape(name)} ignores {ignored}"


def _converted(checkpoint: Checkpoint, known: KnownLayout) -> Mapping[str, TensorInfo]:
    """Return the tensors of a checkpoint after the operations and renamings of ``known``.

    ``known`` is the layout that was recognised in the checkpoint: ``from_pretrained`` converts it in the same way.
    """
    made: Mapping[str, TensorInfo] = checkpoint
    if known.operations:
        made = operate([checkpoint], known.operations)[0].checkpoint
    return {known.names.get(key, key): info for key, info in made.items()}


def _loads(fit: Fit, tensors: Mapping[str, TensorInfo], target: TargetSpec, name: str) -> bool:
    """Return whether the class ``name`` gets all its tensors from ``tensors``, apart from those that it ignores."""
    found = compared(fit.first, tensors, fit.second, target)
    missing = found.missing.keys() - {*_matching(ignored_keys(name, target.cache_key, is_missing=True), found.missing)}
    unused = found.unexpected.keys() - {*_matching(ignored_keys(name, target.cache_key), found.unexpected)}
    return not (missing or unused or found.mismatched or found.uncopied)


def _matching(patterns: Sequence[str], keys: Mapping[str, TensorInfo]) -> list[str]:
    return [key for key in keys if any(re.search(pattern, key) for pattern in patterns)]


def class_of(target: TargetSpec) -> str:
    """Return the name of the class of transformers that a destination builds; AutoModel if config.json names none."""
    texts = [one.text for one in target.companions if one.name == CONFIG and one.text]
    named = read_json(texts[0]).get("architectures") if texts else None
    return str(named[0]) if isinstance(named, list) and named else ANY
