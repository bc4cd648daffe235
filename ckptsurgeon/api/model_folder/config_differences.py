"""Notes on differences between the configurations of models whose weights are combined."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from ...destinations.hf.files import CONFIG
from ...errors import CheckpointError
from ...planning.encoding_checks import stored_sources
from ...planning.plan.plan import Plan
from ...planning.plan.step import MERGES
from ...util.differing_values import UNSAID, texts_apart
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, value_text
from ...vocabulary.id_fields import is_of_ids, is_of_inputs, is_of_others
from .config import AFTER_PADDING, PADDING
from .config_fields import IGNORED_PARTS, is_derived, is_ignored, is_usual, label_notes
from .documents import GENERATION, read_object
from .embedded import embedded_notes
from .folder import ModelFolder
from .generation.alignment import generation_settings
from .layers.moved import moved_layer_notes, written_config
from .layers.rotary import rotary_differences, with_order
from .layers.windows import has_window, is_one_network
from .tokenizer.used_ids import LARGEST, READ_AT_END

__all__ = ["component_differences", "config_notes", "generation_differences", "with_config_said"]

PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "llm_config", "language_config")
ALIKE = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python": "gelu",
}
"""{name of an activation function: other name of the same function, under which it is compared}"""
OF_GEMMA = ("gemma", "paligemma")
"""Model types that ignore their older field ``hidden_act`` and use another activation."""
OF_SOUNDS = {"hubert", "wav2vec2"}
"""Model types that compute the same, unless a configuration has a field with its value in ``OF_ONE``."""
OF_ONE = {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False, "add_adapter": True}
"""{field that only HuBERT or only wav2vec 2.0 computes with: the value with which the networks differ}"""
WINDOWED = ("sliding_window", "max_window_layers")
"""Fields that have no effect if no layer limits attention to a window."""
ROTARY = re.compile(r"rope|rotary|theta|freq")
"""Matches names of fields that transformers 5 moved into ``rope_parameters``."""
BASE = re.compile(r"(^|\.)rope_theta( of \w+)?$")
"""Matches the dotted path of the base of rotary embeddings."""
END, START = "eos_token_id", "decoder_start_token_id"
MANY = 256
"""Lists with more values than this are not compared."""
MOST = 12
"""The largest number of fields that a note lists."""


FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.|$)")
"""Matches the name of a low-rank factor in a key."""


def _beginnings(file: str) -> tuple[str, str]:
    """Return the beginnings of the notes on ``file``: for fields known to differ, and for fields set only once."""
    return (
        f"equal weights compute different results, because the {file} files differ",
        "equal weights compute different results, unless these are the defaults of the class",
    )


DIFFERENT = _beginnings(CONFIG)
"""The beginnings of notes on fields of config.json that differ."""


class _Difference(NamedTuple):
    """A field that differs and its two values as text; ``is_known`` is false if one is a default that is not known."""

    field: str
    other: str
    here: str
    is_known: bool = True


def _factor_notes(plan: Plan) -> list[str]:
    """Return a note if a plan merges the low-rank factors A and B of adapters separately.

    The product of the means, (A1 + A2)/2 (B1 + B2)/2, is not the mean of the products, (A1 B1 + A2 B2)/2.
    """
    merged = {match[0] for step in plan.steps if step.op in MERGES and (match := FACTOR.search(step.key))}
    if len(merged) < 2:
        return []
    return [
        "the factors of adapters (lora_A, lora_B) are merged separately: their product is not the merged change of the "
        "weights, unless all adapters have the same lora_A or the same lora_B; ckpt lora merge BASE A B --weights "
        "0.5,0.5 adds the changes"
    ]


def with_config_said(
    plan: Plan,
    folders: Sequence[ModelFolder],
    donor: int = 0,
    given: tuple[Mapping[str, Any], str, ModelFolder] | None = None,
) -> Plan:
    """Return a plan with notes on sources whose weights give different results with the output's configuration.

    ``folders`` are the folders of the sources. The output gets the configuration of the source at index ``donor`` or,
    if this source has none, of the first source that has one. If the output gets the configuration of a destination
    that is not a source, ``given`` is (configuration, name, folder) of this destination.

    Fields that are known to have no effect on results are not compared. If only one configuration sets a field, there
    is a note only if both have the same model type, and if the value is not the default of the class. There are also
    notes on classifiers with other labels than the output's, and on models that prepare inputs differently.
    """
    plan = replace(plan, notes=(*plan.notes, *_factor_notes(plan)))
    stored = stored_sources(plan)
    read = {stored[one.source] for step in plan.steps for one in step.inputs}
    models = [(source.name, folder.config) for source, folder in zip(plan.sources, folders, strict=False)]
    used = {number: model for number, model in enumerate(models) if number in read and model[1]}
    if given is None or not given[0]:
        name, ours = next(iter([one for one in models[donor : donor + 1] if one[1]] or used.values()), ("", {}))
        output_folder = next((one for one in folders if one.config is ours), ModelFolder(""))
    else:
        ours, name, output_folder = given
    whose = donor if given is None else -1
    faults = (one.fault for number, one in enumerate(folders) if number in read and number != whose and one.fault)
    notes: list[str] = [
        fault.reworded(f"{fault.removesuffix('.')}: this file is not compared with that of the output")
        for fault in dict.fromkeys(faults)
    ]
    inside = [(source.name, one.embedded) for source, one in zip(plan.sources, folders, strict=False)]
    notes += embedded_notes(inside, donor, read)
    if given is None:
        others = ((number, one) for number, one in enumerate(folders) if number in read and number != donor)
        for number, one in others:  # some sources, such as statistics, have no folder
            names = plan.sources[number].name, plan.sources[donor].name
            notes += component_differences(names[0], one, names[1], folders[donor])
    written = written_config(plan) or ours
    by_place = all(step.rows is None and not step.vocabularies for step in plan.steps)
    for number, (other, theirs) in used.items():
        notes += moved_layer_notes(plan, number, theirs, written, is_own=theirs is ours)
        if theirs is not ours:
            from .processors.differences import input_notes
            from .sentence.differences import sentence_differences

            pair = _with_starts((theirs, folders[number]), (ours, output_folder))
            said = config_notes(other, pair[0], name, pair[1], by_place=by_place)
            notes += (Note(NoteKind.SERIOUS, one) if _rotate_otherwise(*pair) else one for one in said)
            notes += label_notes(plan, number, theirs, name, ours)
            notes += input_notes(other, folders[number], name, output_folder)
            notes += sentence_differences(other, folders[number], name, output_folder)
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def config_notes(
    other: str,
    theirs: Mapping[str, Any],
    name: str,
    ours: Mapping[str, Any],
    *,
    by_place: bool = True,
    file: str = CONFIG,
) -> Iterator[str]:
    """Yield a note on the fields in which the configurations of two models differ; none if they are equal.

    A second note has the fields that only one of them sets, if the default of their class is not known. ``ours`` is the
    configuration of the model called ``name``, and ``theirs`` that of the model called ``other``. ``by_place`` is false
    if rows are mapped by token; then a token may have different ids in the two models. ``file`` is the name of the file
    that has the configuration.
    """
    found = [one for one in _all_differing(theirs, ours) if by_place or not _is_computed(one.field)]
    ordered = sorted(found, key=lambda one: one.field != "model_type")
    for is_known, begin in zip((True, False), _beginnings(escape(file)), strict=True):
        lines = [
            _line(escape(one.field), (one.other, escape(other)), (one.here, escape(name)))
            for one in ordered
            if one.is_known == is_known
        ]
        if len(lines) > MOST:
            lines[MOST:] = [f"and {len(lines) - MOST} more"]
        if lines:
            yield f"{begin}: {'; '.join(lines)}"


def component_differences(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield notes on the fields in which configurations of two diffusers pipelines differ, such as of the schedulers.

    ``ours`` is the folder of the pipeline called ``name``, and ``theirs`` the folder of the one called ``other``. Files
    that only one of them has are not compared.
    """
    paths = {one.name: one.path for one in theirs.parts}
    for file in ours.parts:
        with suppress(CheckpointError):
            there = read_object(paths[file.name]) if file.name in paths else {}
            if there:
                yield from config_notes(other, there, name, read_object(file.path), file=file.name)


def _all_differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[_Difference]:
    pair = _parts_of_one_kind(theirs, ours)
    return _differing(*pair, is_part=pair != (theirs, ours)) if ours else iter(())


def _rotate_otherwise(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Return whether the bases of rotary embeddings differ: then queries and keys of the two models do not fit."""
    return any(BASE.search(one.field) for one in _all_differing(theirs, ours))


def _with_starts(*models: tuple[Mapping[str, Any], ModelFolder]) -> list[Mapping[str, Any]]:
    """Return the models' configurations; a missing ``decoder_start_token_id`` is taken from generation_config.json.

    ``models`` has (configuration, folder) of each model. generation_config.json is read only if one of the models has a
    decoder that needs this id.
    """
    configs = [config for config, _ in models]
    if not any(config.get(START) is not None or config.get("is_encoder_decoder") is True for config in configs):
        return configs
    starts = [generation_settings(folder).get(START) for _, folder in models]
    return [
        config if start is None or config.get(START) is not None else {**config, START: start}
        for config, start in zip(configs, starts, strict=True)
    ]


def _line(field: str, *pair: tuple[str, str]) -> str:
    """Return a line of a note: a field and its values in two models.

    ``pair`` has (value, name of the model) for each model. A model in which the field is not set comes first.
    """
    (one, other), (here, name) = sorted(pair, key=lambda value: value[0] != UNSAID)
    return f"{field} is {one} in {other}, {here} in {name}"


def _parts_of_one_kind(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the two configurations to compare: ``theirs`` and ``ours``, or one of them and a part of the other.

    For example, if ``theirs`` is the configuration of a language model and ``ours`` has a ``text_config`` of the same
    model type, ``theirs`` is compared with this ``text_config``.
    """
    for part in PARTS:
        inner, outer = theirs.get(part), ours.get(part)
        if isinstance(outer, dict) and not isinstance(inner, dict) and _is_kind(outer, theirs):
            return theirs, outer
        if isinstance(inner, dict) and not isinstance(outer, dict) and _is_kind(inner, ours):
            return inner, ours
    return theirs, ours


def _is_kind(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    kinds = [str(one.get("model_type", "")).removesuffix("_text") for one in (part, whole)]
    return kinds[0] == kinds[1] != ""


def _differing(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], above: str = "", *, is_part: bool = False
) -> Iterator[_Difference]:
    """Yield each field that differs with their value and ours, including fields of nested configurations.

    ``is_part`` is true for nested configurations. ``above`` is then their path, such as "text_config.".
    """
    is_one_kind = is_one_network(theirs, ours)
    made = (with_order(theirs), with_order(ours)) if is_one_kind else ({}, {})
    for field in dict.fromkeys((*ours, *theirs)):
        inner, outer = pair = theirs.get(field), ours.get(field)
        if None in pair and pair != (None, None) and field in {**made[0], **made[1]}:
            meant = [by_class.get(field) if one is None else one for one, by_class in zip(pair, made, strict=True)]
            if None not in meant and _differ(*meant):
                yield _Difference(above + field, _said_in(theirs, field), _said_in(ours, field))
            continue
        if field == PADDING and {theirs.get("model_type"), ours.get("model_type")} <= AFTER_PADDING:
            if None not in pair and inner != outer:
                yield _Difference(above + field, *_said_apart(theirs, ours, field))
            continue
        if is_of_ids(field):
            if _decides(field, pair, (theirs, ours)):
                yield _Difference(above + field, *_said_apart(theirs, ours, field))
            continue
        if isinstance(inner, dict) and isinstance(outer, dict) and field not in IGNORED_PARTS:
            yield from _differing(inner, outer, f"{above}{field}.", is_part=True)
        elif _is_unused(field, pair, (theirs, ours)) or not _differ(*map(_meant, pair)):
            continue
        elif None not in pair:
            yield _Difference(above + field, *_said_apart(theirs, ours, field))
        elif is_one_kind:
            usual = is_usual(field, _meant(next(value for value in pair if value is not None)), ours.get("model_type"))
            if usual is False or (usual is None and not is_part):
                yield _Difference(above + field, *_said_apart(theirs, ours, field), is_known=usual is not None)
    for field, one, here in rotary_differences(theirs, ours, is_one_kind=is_one_kind):
        if isinstance(one, dict) and isinstance(here, dict) and one.get("rope_type") == here.get("rope_type"):
            for name in [name for name in here if name in one and one[name] != here[name]]:
                yield _Difference(f"{above}{field}.{name}", *_said_apart(one, here, name))
        else:
            yield _Difference(above + field, _said_of_rope(one), _said_of_rope(here))


def _decides(field: str, pair: Sequence[Any], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a difference in a field with token ids changes results; ``pair`` are its values in ``configs``.

    Three kinds of ids change results: those of placeholder tokens (for images and the like), the id with which a
    decoder begins, and the id of CLIP's end token, at which the features of a text are taken. Old configurations of
    CLIP have the id 2 instead of the end token's id. This difference has no effect if the end token has the last row,
    which is the default.
    """
    if None in pair or pair[0] == pair[1] or not _is_computed(field):
        return False
    if field == START:
        return True
    reads = all(one.get("model_type") in READ_AT_END for one in configs)
    ends, sizes = [one for one in pair if one != LARGEST], [one.get("vocab_size") for one in configs]
    is_last = len(ends) == 1 and not all(type(one) is int and one - 1 != ends[0] for one in sizes)
    return field != END or (reads and not is_last)


def _is_computed(path: str) -> bool:
    """Return whether a network may compute with the token ids in a field; ``path`` is the dotted path of the field."""
    field = path.rpartition(".")[2]
    return field in (END, START) or (is_of_ids(field) and is_of_inputs(field) and not is_of_others(field))


def _is_unused(field: str, pair: Sequence[Any], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a field has no effect in two models; ``pair`` are its values, ``configs`` the configurations."""
    if field == "rope_theta" or is_ignored(field) or not all(_is_short(value) for value in pair):
        return True
    if field in WINDOWED and not any(map(has_window, configs)):
        return True
    if field == "model_type" and (is_one_network(*configs) or _are_of_sounds(configs)):
        return True
    if field == "hidden_act" and any(str(one.get("model_type")).startswith(OF_GEMMA) for one in configs):
        return True
    newer = any(isinstance(one.get("rope_parameters"), dict) for one in configs)
    return None in pair and (is_derived(field) or (newer and ROTARY.search(field) is not None))


def _are_of_sounds(configs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the configurations are of HuBERT and of wav2vec 2.0, and both have the same network."""
    differs = any(one.get(field) is value for one in configs for field, value in OF_ONE.items())
    return {one.get("model_type") for one in configs} == OF_SOUNDS and not differs


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float) or (isinstance(value, list) and len(value) <= MANY)


def _differ(one: Any, here: Any) -> bool:
    """Return whether two values differ; two lists are compared only up to the end of the shorter list.

    Lists may have an entry for each layer, and the models may have different numbers of layers.
    """
    if isinstance(one, list) and isinstance(here, list):
        return any(a != b for a, b in zip(one, here, strict=False))
    return bool(one != here)


def _said_in(config: Mapping[str, Any], field: str) -> str:
    return value_text(config[field]) if field in config else UNSAID


def _said_apart(theirs: Mapping[str, Any], ours: Mapping[str, Any], field: str) -> tuple[str, str]:
    """Return the two values of a field as text; for long lists and dicts, only the first entries that differ."""
    if field in theirs and field in ours:
        return texts_apart(theirs[field], ours[field])
    return _said_in(theirs, field), _said_in(ours, field)


def _said_of_rope(value: Any) -> str:
    if value == {"rope_type": "default"}:  # rope_scaling: null in config.json means this, too
        return "without scaling"
    return UNSAID if value is None else value_text(value)


def _meant(value: Any) -> Any:
    return ALIKE.get(value, value) if isinstance(value, str) else value


# Notes on settings of generation.

OF_WRITING = re.compile(r"^_|^transformers_version$")
"""Matches names of fields that describe the program that wrote the file."""
MOST_FIELDS = 6
"""The largest number of fields that a note on generation lists."""


def generation_differences(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield a note on how two models generate text differently, if both have a generation_config.json.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``.
    """
    there, here = map(generation_settings, (theirs, ours))
    fields = [one for one in dict.fromkeys((*here, *there)) if not OF_WRITING.search(one)] if there and here else []
    differing = [field for field in fields if there.get(field) != here.get(field)]
    values = [_said_apart(there, here, field) for field in differing]
    lines = [
        _line(escape(field), (one, escape(other)), (two, escape(name)))
        for field, (one, two) in zip(differing, values, strict=True)
    ]
    if len(lines) > MOST_FIELDS:
        lines[MOST_FIELDS:] = [f"and {len(lines) - MOST_FIELDS} more"]
    if lines:
        yield f"the models generate text differently, according to {GENERATION}: {'; '.join(lines)}"
