"""Notes on tensors that rules rename although their new names mean another order of rows, or a transposed matrix."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....planning.keys.matcher import KeyMatcher
from ....planning.keys.other_layouts import layout_notes
from ....planning.keys.pattern import KeyPattern
from ....planning.keys.row_order import HALVES, PAIRS, Misordered, misordered
from ....planning.llama_cpp.model_types import MODEL_TYPES
from ....planning.llama_cpp.names import ARCHITECTURES
from ....planning.plan.plan import Plan
from ....storage.json_text import read_json
from ....storage.small_files import read_file
from ....tensors.info import TensorInfo
from ....util.text import number_in
from ..folder import model_folder

__all__ = ["renaming_notes", "with_row_order_said"]

PARAMETERS = "params.json"
"""The file in which Meta and Mistral describe a model."""
ARCHITECTURE = "general.architecture"
IN_PAIRS = frozenset((
    "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "glm", "glm4", "glm4v",
    "glm_ocr", "helium", "llama4", "llama4_text", "moonshine", "moonshine_streaming",
))  # fmt: skip
"""Model types of transformers whose own code rotates pairs side by side."""
_HEADS = {
    "q": ("n_heads", "num_attention_heads", "head_count"), "k": ("n_kv_heads", "num_key_value_heads", "head_count_kv"),
}  # fmt: skip
"""The fields with the numbers of heads of queries and of keys: Meta's, transformers' and llama.cpp's."""
_REORDER = (HALVES, PAIRS, "reshape", "permute")
_TURN = ("transpose", "permute", "reshape")

Settings = Mapping[str, Any]


def with_row_order_said(plan: Plan, sources: Sequence[Checkpoint], config: Settings) -> Plan:
    """Return the plan with notes on tensors whose new names mean another order of rows, or a transposed matrix.

    ``sources`` have the tensors that rules rename; ``config`` are the fields of the destination's configuration.
    """
    keys = [step.key for step in plan.steps]
    notes: list[str] = []
    for number, source in enumerate(sources):
        notes += _row_order_notes(list(_renamed(plan, number, _REORDER)), source, keys, config)
        notes += layout_notes(list(_renamed(plan, number, _TURN)), source)
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def renaming_notes(
    names: Collection[tuple[str, str]], source: Checkpoint, destination: Collection[str], config: Settings
) -> Iterator[str]:
    """Yield notes on tensors whose new names mean another layout; ``names`` are pairs of an old and a new key.

    ``destination`` are all keys of the destination, ``config`` are the fields of its configuration.
    """
    yield from _row_order_notes(names, source, destination, config)
    yield from layout_notes(names, source)


def _row_order_notes(
    names: Collection[tuple[str, str]], source: Checkpoint, destination: Collection[str], config: Settings
) -> Iterator[str]:
    """Yield the note on queries and keys that are renamed."""
    found = misordered(names, (list(source), destination)) if names else None
    if found is not None:
        settings = config, _settings(source)
        if not _has_own_order(found, settings):
            is_known = "llama.cpp" not in found.libraries or any(map(_architecture, settings))
            yield found.note(_heads(found, source, settings), is_llama=is_known)


def _settings(source: Checkpoint) -> Settings:
    """Return what is known about a source's model: the fields of config.json, params.json and the metadata of GGUF."""
    start = f"{source.metadata.get(ARCHITECTURE, '')}.attention."
    stored = {name.removeprefix(start): value for name, value in source.metadata.items()}
    return {**_parameters(source.path), **stored, **model_folder(source).config}


def _parameters(path: str) -> dict[str, Any]:
    """Return the fields of the params.json beside local weights; {} if there is none."""
    folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    with suppress(OSError, ValueError, CheckpointError):
        fields = read_json(read_file(os.path.join(folder, PARAMETERS))) if os.path.exists(path) else {}
        return fields if isinstance(fields, dict) else {}
    return {}


def _renamed(plan: Plan, number: int, verbs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the old and the new key of each tensor of a source that a rule renames and that no operation changes.

    ``verbs`` are the operations that count.
    """
    rows = plan.sources[number].operations
    changed = KeyMatcher([KeyPattern.given(row[verb], "") for row in rows for verb in verbs if verb in row])
    for step in plan.steps:
        is_renamed = step.source == number and step.rule.startswith("--map")
        if is_renamed and not any(map(changed.match, (step.source_key, *step.made_of))):
            yield step.source_key, step.key


def _architecture(settings: Settings) -> str:
    """Return llama.cpp's architecture of a model; '' if it is not known."""
    stated = settings.get(ARCHITECTURE) or MODEL_TYPES.get(str(settings.get("model_type")), "")
    return stated if isinstance(stated, str) and stated in ARCHITECTURES else ""


def _has_own_order(found: Misordered, settings: Sequence[Settings]) -> bool:
    """Return whether the model is known to have the same order of rows in both libraries."""
    kinds = [str(one.get("model_type")) for one in settings]
    architectures = [ARCHITECTURES[name] for name in map(_architecture, settings) if name]
    in_llama_cpp = "llama.cpp" in found.libraries and any(not one.pairs for one in architectures)
    return in_llama_cpp or any(kind in IN_PAIRS for kind in kinds)


def _heads(found: Misordered, source: Mapping[str, TensorInfo], settings: Sequence[Settings]) -> dict[str, int]:
    """Return the numbers of heads of queries ("q") and of keys ("k"), if they are known and fit the rows."""
    if len(found.modules) > 2:
        return {}
    stated = {kind: number for kind, names in _HEADS.items() if (number := _number(names, settings))}
    if "q" in stated:
        stated.setdefault("k", stated["q"])
    rows = {kind: _rows(found, source, module) for module, kind in found.modules.items()}
    sizes = {kind: rows.get(kind, 0) / number for kind, number in stated.items()}
    if len(set(sizes.values())) != 1 or sizes.popitem()[1] % 2:
        return {}
    return stated


def _number(names: Sequence[str], settings: Sequence[Settings]) -> int:
    for fields in settings:
        for name in names:
            value = fields.get(name)
            value = number_in(value) if isinstance(value, str) else value
            if type(value) is int and value > 0:
                return value
    return 0


def _rows(found: Misordered, source: Mapping[str, TensorInfo], module: str) -> int:
    before, after = module.split("{n}")
    keys = (key for key in found.renamed if key.startswith(before) and f"{after}." in key and key in source)
    return next((source[key].shape[0] for key in keys if source[key].shape), 0)
