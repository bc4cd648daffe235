"""Notes on how two folders of sentence-transformers compute other embeddings from equal weights of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....destinations.hf.sentence_modules import MODULES
from ....errors import CheckpointError
from ....storage.read.uri import read_small, scheme_of
from ....util.differing_values import UNSAID, texts_apart
from ....util.text import escape
from ..folder import LARGEST, ModelFolder
from .modules import Module, config_of, modules_in, pooling_modes, settings_in, weights_in

__all__ = ["sentence_differences"]

_IGNORED = re.compile(r"^_|^pooling_mode_|^model_type$|^(?:word_)?embedding_dimension$|^init_")
"""Matches fields that change no embedding, or that are compared otherwise or with the shapes of weights."""
_DEFAULTS: Mapping[str, Any] = {
    "bias": True, "default_prompt_name": None, "do_lower_case": False, "include_prompt": True, "max_seq_length": None,
    "prompts": {}, "similarity_fn_name": "cosine", "truncate_dim": None,
}  # fmt: skip
"""{field: its value if it is missing or null}"""
_BESIDE = ("sentence_bert_config.json", "config_sentence_transformers.json")
_BEGIN = "the models embed or compare sentences differently"
_MOST = 6
"""The largest number of fields that a note lists."""


def sentence_differences(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield notes on the modules, settings and weights of modules in which two sentence-transformers folders differ.

    There are none unless both folders have a modules.json. ``ours`` is the folder of the model called ``name``, and
    ``theirs`` the folder of the model called ``other``. Weights at addresses are not compared.
    """
    there, here = modules_in(theirs), modules_in(ours)
    if not (there and here):
        return
    kinds = [", ".join(one.kind for one in modules) for modules in (there, here)]
    if kinds[0] != kinds[1]:
        yield (
            f"{_BEGIN}, according to {MODULES}: the modules are {escape(kinds[0])} in {escape(other)}, "
            f"{escape(kinds[1])} in {escape(name)}"
        )
    pairs = [pair for pair in zip(there, here, strict=False) if pair[0].kind == pair[1].kind and pair[1].place]
    names = [(config_of(one), config_of(two)) for one, two in pairs] + [(file, file) for file in _BESIDE]
    for file, own in names:
        lines = list(_lines(other, _settings(theirs, file), name, _settings(ours, own)))
        if len(lines) > _MOST:
            lines[_MOST:] = [f"and {len(lines) - _MOST} more"]
        if lines:
            yield f"{_BEGIN}, according to {escape(own)}: {'; '.join(lines)}"
    for one, two in pairs:
        yield from _weight_notes(other, theirs, one, name, ours, two)


def _settings(folder: ModelFolder, file: str) -> dict[str, Any]:
    """Return the fields of a file that change embeddings or their comparison, in one form for all versions."""
    fields = settings_in(folder, file)
    made = {name: value for name, value in fields.items() if not _IGNORED.search(name)}
    if any(name.startswith("pooling_mode") for name in fields):
        made["pooling_mode"] = "+".join(pooling_modes(fields))
    if isinstance(made.get("prompts"), dict):
        made["prompts"] = {name: text for name, text in made["prompts"].items() if text}  # "" is not a prompt
    return made


def _lines(other: str, there: Mapping[str, Any], name: str, here: Mapping[str, Any]) -> Iterator[str]:
    """Yield a text for each field that differs; a field without a known default is compared only if both have it."""
    for field in dict.fromkeys((*here, *there)):
        known = field in _DEFAULTS
        values = [_DEFAULTS[field] if known and one.get(field) is None else one.get(field) for one in (there, here)]
        if values[0] != values[1] and (known or (field in there and field in here)):
            texts = texts_apart(values[0], values[1])
            said = [text if field in one else UNSAID for text, one in zip(texts, (there, here), strict=True)]
            yield f"{escape(field)} is {said[0]} in {escape(other)}, {said[1]} in {escape(name)}"


def _weight_notes(
    other: str, theirs: ModelFolder, one: Module, name: str, ours: ModelFolder, two: Module
) -> Iterator[str]:
    """Yield a note if the weights of a module differ in two folders, or if only one of the folders has them."""
    there, here = weights_in(theirs, one), weights_in(ours, two)
    if there is None or here is None:
        if there is not here:
            file, has = (here, name) if there is None else (there, other)
            yield f"{_BEGIN}: only {escape(has)} has {escape(file.name if file else '')}"
    elif not (scheme_of(there.path) or scheme_of(here.path)) and _have_other_weights(there.path, here.path):
        yield f"{_BEGIN}: {escape(here.name)} has other weights in {escape(other)} than in {escape(name)}"


def _have_other_weights(first: str, second: str) -> bool:
    """Return whether two files have different tensors; False if one cannot be read, which another note says."""
    with suppress(CheckpointError):
        if read_small(first, LARGEST) == read_small(second, LARGEST):
            return False
    from ....analysis.compare.compare import compare
    from ....checkpoint.opening import open_checkpoint

    with suppress(CheckpointError), open_checkpoint(first) as one, open_checkpoint(second) as two:
        found = compare(one, two, values=True)
        return len(found.same) < max(len(one), len(two))
    return False
