"""Gives the tensors of a source the names and shapes of the network that its configuration describes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.ignored_keys import ignored_keys
from ...errors import PlanError
from ...planning.keys.spelling import quoted
from ...planning.llama_cpp.names import in_llama_cpp
from ...planning.plan.plan import TWICE, EqualKeys
from ...planning.quantised import computing
from ...planning.quantised_error import dequantise
from ...planning.target import TargetSpec
from ...planning.transplant.equal_tensors import are_known_equal, unequal_error
from ...tensors.dtypes import DTYPES
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ..from_pretrained import class_of
from ..inputs.operations import operate
from ..model_folder.folder import model_folder
from ..model_folder.layers.experts import INITIALISED, expert_notes
from ..model_folder.weights.shape_checks import DescribedTensor

__all__ = ["NamedSource", "computed_tensors", "named_source", "refuse_codes", "refuse_gguf"]


@dataclass(frozen=True)
class NamedSource:
    """How the tensors of a source get the names and shapes of ``network``, which its configuration describes.

    ``rows`` are operations that do this, and ``stored_twice`` are patterns of second copies, to be left out later.
    ``equal`` are pairs of such copies whose values must be the same. ``computed`` are tensors that the source lacks
    because the class computes them. ``dtypes`` are the dtypes of all floating-point tensors.
    """

    network: TargetSpec
    rows: Sequence[Mapping[str, Any]]
    stored_twice: Sequence[str]
    computed: Sequence[str]
    dtypes: frozenset[str]
    equal: Sequence[EqualKeys] = ()

    @property
    def dtype(self) -> str | None:
        """The dtype of all floats; None if there are several."""
        return next(iter(self.dtypes)) if len(self.dtypes) == 1 else None


def refuse_gguf(source: Checkpoint) -> None:
    """Raise PlanError if ``source`` is a GGUF file whose tensors have llama.cpp's names; the hint converts it."""
    if source.format == "gguf" and in_llama_cpp(source):
        in_blocks = any(DTYPES[info.dtype].block for info in source.values())
        path = escape(shlex.quote(source.path))
        raise PlanError(
            f"{escape(source.path)} has the names and layout of llama.cpp, as GGUF files do, but resize needs those of "
            "transformers.",
            hint=f"Convert it first: ckpt convert {path}{' --dequantize' if in_blocks else ''} --layout transformers "
            "-o plain/. Then give resize the folder plain/, and the model's config.json with --config.",
        )


def refuse_codes(source: Checkpoint) -> None:
    """Raise PlanError if ``source`` has quantised weights that its config.json does not declare.

    A declared quantisation has already been refused when the configuration was read.
    """
    if source.codes:
        coded = source.codes.tensors
        raise computing([(source.path, one, "a change of its size") for one in coded], dequantise("resize"))


def named_source(source: Checkpoint, network: TargetSpec) -> NamedSource:
    """Return how the tensors of ``source`` get the names of ``network``.

    A tied tensor is changed under its first key; if it is also stored under another key, the second copy is left out.

    Raises PlanError if the source lacks tensors of the network, other than those that the class computes, or if headers
    show that tied tensors differ.
    """
    computed = computed_tensors(source, network)
    rows: list[Mapping[str, Any]] = []
    names = {key: key for key in source if key in network.tensors}
    is_renamed_only = True
    if network.recognise is not None:
        found = network.recognise(source)
        rows += found.operations
        is_renamed_only = not found.operations
        for old, new in found.names.items():
            if old != new and new in network.tensors:
                rows.append({"copy": quoted(old), "into": [quoted(new)]})
                names[new] = old
    if is_renamed_only:
        _check_fits(source, network, names, computed)
    else:
        _check_experts(source)
        after = operate([source], rows)[0].checkpoint
        _check_fits(after, network, {key: key for key in after if key in network.tensors}, computed)
    ties, equal = _ties(source, network, names)
    left = dict.fromkeys(quoted(key) for pair in equal for key in (pair.first, pair.second))
    dtypes = frozenset(info.dtype for info in source.values() if DTYPES[info.dtype].is_floating)
    return NamedSource(network, [*rows, *ties], list(left), computed, dtypes, equal)


def computed_tensors(source: Mapping[str, Any], network: TargetSpec) -> list[str]:
    """Return tensors that the source lacks because the class computes them when it loads, such as tables of sines."""
    if network.kind != "transformers":
        return []
    absent = [key for key in network.tensors if key not in source and key not in network.ties]
    patterns = ignored_keys(class_of(network), network.cache_key, is_missing=True) if absent else []
    return [key for key in absent if any(re.search(pattern, key) for pattern in patterns)]


def _check_experts(source: Checkpoint) -> None:
    """Raise PlanError if only some layers of ``source`` lack experts, or only some experts lack tensors.

    The experts of a layer are stacked into one tensor. If one were missing, each later expert would move up by one
    place, and so get the router's row of another expert.
    """
    tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in source.items()]
    notes = expert_notes(tensors, model_folder(source).config)
    lacks = next((one for one in notes if isinstance(one, Note) and one.kind is NoteKind.MISSING_TENSORS), None)
    if lacks is not None:
        raise PlanError(
            f"{escape(source.path)} is incomplete: {lacks.removesuffix(f': {INITIALISED}')}.",
            hint="Copy the missing tensors from the original model.",
        )


def _check_fits(source: Checkpoint, network: TargetSpec, names: Mapping[str, str], computed: Sequence[str]) -> None:
    """Raise PlanError if the source lacks tensors of ``network``, or has them in other shapes.

    ``names`` maps the network's tensors that the source has to their keys in the source. ``computed`` are tensors that
    the source need not have.
    """
    owners = {network.ties.get(key, key) for key in names}.union(computed)
    missing = [key for key in network.tensors if network.ties.get(key, key) not in owners]
    wrong = [old for key, old in names.items() if source[old].shape != network.tensors[key].shape]
    if missing or wrong:
        what = f"does not have {listing(missing)}" if missing else f"has other shapes: {listing(wrong)}"
        raise PlanError(
            f"{escape(source.path)} does not fit its configuration: it {what}.",
            hint="Run ckpt fits, which lists the differences.",
        )


def _ties(
    source: Checkpoint, network: TargetSpec, names: Mapping[str, str]
) -> tuple[list[Mapping[str, Any]], list[EqualKeys]]:
    """Return (operations that give each tied tensor its first key, pairs of copies whose values must be equal).

    If a tensor is stored under several keys, its values under each key are kept as copies, to be compared later. The
    operations change only the tensor under the first key. ``names`` maps the tensors of the network that the source has
    to their keys in the source.
    """
    rows: list[Mapping[str, Any]] = []
    equal: list[EqualKeys] = []
    there = dict(names)
    for alias, owner in network.ties.items():
        if alias in there and owner in there:
            _check_equal(source, there[owner], there[alias])
            equal.append(EqualKeys(0, f"{owner}{TWICE}", f"{alias}{TWICE}"))
            rows.append({"copy": quoted(alias), "into": [quoted(f"{alias}{TWICE}")]})
        elif alias in there:
            rows.append({"copy": quoted(alias), "into": [quoted(owner)]})
            there[owner] = there[alias]
    owners = dict.fromkeys(pair.names[0] for pair in equal)
    rows += [{"copy": quoted(owner), "into": [quoted(owner), quoted(f"{owner}{TWICE}")]} for owner in owners]
    return rows, equal


def _check_equal(source: Checkpoint, first: str, other: str) -> None:
    """Raise PlanError if the headers show that two tensors of ``source``, which the network ties, differ."""
    if first in source and other in source and are_known_equal(source[first], source[other]) is False:
        raise unequal_error(first, other, source.path, "resize")
