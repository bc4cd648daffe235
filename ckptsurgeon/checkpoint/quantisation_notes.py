"""Makes notes on quantised tensors that contradict each other, or contradict the quantisation settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..storage.read.base import Folder
from ..storage.read.uri import scheme_of
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..tensors.plain_tensors import are_plain_integers
from ..tensors.quantised.agreement import (
    QuantisedModule,
    contradictions,
    disagreements,
    left_out,
    plain_heads,
    stores_codes,
)
from ..tensors.quantised.config_groups import untargeted
from ..tensors.quantised.contradictions import Contradiction
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.exclusions import HEADS
from ..tensors.quantised.methods import KNOWN, family, known_by_settings
from ..tensors.quantised.parts import IncompleteTensors
from ..tensors.quantised.plain_weights import plain_among_codes, plain_kinds
from ..tensors.quantised.sizes import unfit_sizes
from ..tensors.quantised.unlike import stored_twice, unfit_parts
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing
from .quantisation import SETTINGS, configuration, quantisation_settings, settings_by_file

__all__ = [
    "contradictory",
    "disagreeing_files",
    "missing_settings",
    "of_other_width",
    "plain_integers",
    "unfit",
    "unlike_others",
]

Tensors = Mapping[str, TensorInfo]
OTHERS = ("norm", "embed", "router", ".gate.")
"""A weight with one of these texts in its name is not quantised by any method."""
SMALLEST = 16
"""A weight with fewer rows or columns than this is not quantised by any method."""
MODELOPT = "hf_quant_config.json"
ALONE, OF_FILES = ("quantize_config.json", "quant_config.json"), ("GPTQ", "AWQ")
"""The settings files of AutoGPTQ and AutoAWQ, and the encoding that each of them describes."""
OF_MODELOPT = {"NVFP4": ("nvfp4",), "MIXED": (), "FP8": ("fp8", "mxfp8")}
"""If a ModelOpt algorithm's name contains one of these words, weights have one of these families of encodings."""
OLD_SETTINGS = "compression_config"
"""The name of the settings before compressed-tensors 0.5; vLLM still reads this name, transformers 5 does not."""
SPARSE = ("sparse-bitmask", "sparse-24-bitmask")
"""Formats of compressed-tensors that store only non-zero weights, and a ``bitmask`` of their positions.

https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/config/base.py
"""
SHOWN = 3
AS_WEIGHTS = ", so that loaders use the codes as if they were weights"
"""What loaders do with 8-bit floats without settings, since such codes have the shape of the weights."""
ONE = {"have": "has", "are": "is"}
"""{verb in the plural: verb in the singular}."""
IN_LAYER, LAYERS = re.compile(r"(?:(.*?)\.)??layers\.(\d{1,9})\..*"), "num_hidden_layers"
FURTHER = "num_nextn_predict_layers"
OF_TEXT = ("text_config", "llm_config", "language_config")
"""The sections of config.json that describe the language model of a larger model."""
WIDE, GATE = re.compile(r"\.\d+\..*\.(?:[qkv]_proj|gate_proj|up_proj)\.weight$"), ".gate_proj."
"""Matches weights with ``hidden_size`` columns. This holds only in models that have names with ``GATE``."""
BY_SETTINGS = re.compile("MLX|^int\\d+ packed")
"""Matches the quantisation methods with which a weight's number of columns depends on the settings (bits), too."""


def unfit(
    codes: QuantisedTensors, tensors: Tensors, settings: Mapping[str, Any], lacking: Iterable[IncompleteTensors]
) -> dict[str, list[str]]:
    """Return {part: names of quantised tensors} for parts, such as ``qzeros``, whose shapes do not fit the codes.

    Tensors that lack parts (``lacking``) are left out: without these parts, no encoding is recognised.
    """
    found: dict[str, list[str]] = {}
    names = {name for one in lacking if not one.block for name in one.names}
    for part, name in dict.fromkeys((*unfit_parts(codes, tensors), *unfit_sizes(codes, tensors, settings))):
        if name not in names:
            found.setdefault(part, []).append(name)
    return found


@notes_of(NoteKind.QUANTISATION)
def contradictory(
    path: str,
    codes: QuantisedTensors,
    tensors: Tensors,
    settings: Mapping[str, Any],
    unfit: Mapping[str, Sequence[str]],
    elsewhere: Sequence[str],
) -> Iterator[str]:
    """Yield a note for each quantisation setting that contradicts the quantised tensors.

    ``unfit`` has the quantised tensors whose parts do not fit, as the function ``unfit`` returns them. ``elsewhere``
    has the keys of the model's other shards.
    """
    others = {name for names in unfit.values() for name in names}
    for fact, names in contradictions(codes, tensors, settings, others, elsewhere).items():
        shows = f"{_subject(fact.verb, count(len(names), 'quantised tensor'), names)} {escape(fact.found)}"
        says = f"its quantization_config says {fact.field} {escape(fact.said)}, but {shows}"
        kind = NoteKind.QUANTISATION_REFUSED if _is_of_bits(fact) else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {says}: {listing(names, SHOWN)}")
    for by, names in left_out(codes, settings).items():
        yield (
            f"{escape(path)}: its quantization_config excludes {count(len(names), 'quantised tensor')} by "
            f"{escape(by)}: {listing(names, SHOWN)}"
        )
    if names := untargeted(codes, settings):
        are = f"{count(len(names), 'quantised tensor')} {'matches' if len(names) == 1 else 'match'}"
        said = "no target of its quantization_config, so a loader treats"
        them = "it as not quantised" if len(names) == 1 else "them as not quantised"
        yield f"{escape(path)}: {are} {said} {them}: {listing(names, SHOWN)}"
    yield from _without_masks(path, tensors, settings, elsewhere)
    for said, names in plain_heads(codes, tensors, settings).items():
        are = f"{'it is' if len(names) == 1 else 'they are'} not quantised"
        are = f"and does not exclude {listing(names, SHOWN)}, but {are}"
        yield f"{escape(path)}: its quantization_config says {said} {are}"


@notes_of(NoteKind.QUANTISATION)
def _without_masks(path: str, tensors: Tensors, settings: Mapping[str, Any], elsewhere: Sequence[str]) -> Iterator[str]:
    """Yield a note if the settings say that a bitmask of non-zero weights is stored, but no tensor is a bitmask."""
    sparse = settings.get("sparsity_config")
    stated = sparse.get("format") if isinstance(sparse, dict) else None
    if stated in SPARSE and not any(key.endswith(".bitmask") for key in (*tensors, *elsewhere)):
        says = f"its quantization_config says format {stated} (sparsity_config)"
        yield f"{escape(path)}: {says}, but there is no bitmask: the weights are stored in full, zeros included"


def _is_of_bits(fact: Contradiction) -> bool:
    """Return whether settings and shapes contradict each other in the number of bits: then no loader decodes codes."""
    return fact.field in ("bits", "num_bits") and fact.verb == "say"


def _subject(verb: str, number: str, names: Sequence[str]) -> str:
    if verb == "say":
        return f"the shapes of {number} say"
    return f"{number} {ONE[verb] if len(names) == 1 else verb}"


@notes_of(NoteKind.QUANTISATION)
def of_other_width(path: str, codes: QuantisedTensors, folder: Folder | None) -> Iterator[str]:
    """Yield a note if no quantised layer has as many columns as config.json says (``hidden_size``).

    The number of columns is computed from the codes and the quantisation settings.
    """
    found = [one for one in codes.tensors if one.shape and BY_SETTINGS.search(one.method) and WIDE.search(one.name)]
    if folder is None or not any(GATE in one.name for one in found):
        return
    config = configuration(folder)
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    widths = [part["hidden_size"] for part in parts if type(part.get("hidden_size")) is int]
    if len(widths) == 1 and all(one.shape[-1] != widths[0] for one in found if one.shape):
        columns = found[0].shape[-1] if found[0].shape else 0
        yield (
            f"{escape(path)}: with its quantization_config, {count(len(found), 'quantised tensor')} of layers would "
            f"have {columns} columns, but config.json says {widths[0]} (hidden_size): "
            f"{listing([one.name for one in found], SHOWN)}"
        )


@notes_of(NoteKind.QUANTISATION)
def unlike_others(
    path: str,
    codes: QuantisedTensors,
    tensors: Tensors,
    settings: Mapping[str, Any],
    unfit: Mapping[str, Sequence[str]],
    folder: Folder | None,
) -> Iterator[str]:
    """Yield notes on weights that are stored differently from similar weights.

    There are three kinds: weights that are not quantised although similar weights are; weights that are stored twice,
    quantised and not quantised; and quantised weights whose parts do not fit (``unfit``, as the function ``unfit``
    returns them). Layers for multi-token prediction need not be quantised.
    """
    twice = stored_twice(codes, tensors)
    for found, where, but, kind in (
        (
            plain_among_codes(codes, tensors, settings), ", although other layers are", "and",
            NoteKind.QUANTISATION_REFUSED,
        ),
        (plain_kinds(codes, tensors, settings), " in any layer", "although", NoteKind.QUANTISATION),
    ):  # fmt: skip
        plain, undecided = (_to_be_quantised(one, twice, folder) for one in found)
        are = f"{escape(path)}: {_weights(plain or undecided)} not quantised{where}"
        them = "it" if len(plain or undecided) == 1 else "them"
        if plain:
            more = f"{but} its quantization_config does not exclude {them}: {listing(plain, SHOWN)}"
            yield Note(kind, f"{are}, {more}")
        if undecided:
            said = f"some expressions of its quantization_config, which may exclude {them}, are not evaluated"
            yield f"{are}; {said}: {listing(undecided, SHOWN)}"
    if twice:
        are = f"{escape(path)}: {_weights(twice)} stored twice"
        yield f"{are}, quantised and not quantised, and a loader uses only one: {listing(twice, SHOWN)}"
    for part, names in unfit.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'} {escape(part)}"
        yield Note(
            NoteKind.BROKEN_CODES,
            f"{escape(path)}: {has} of a shape that does not fit the codes: {listing(names, SHOWN)}",
        )


def _weights(names: Sequence[str]) -> str:
    """Return the number of weights and a verb: ``2 weights are``."""
    return f"{count(len(names), 'weight')} {'is' if len(names) == 1 else 'are'}"


def _to_be_quantised(names: list[str], twice: Iterable[str], folder: Folder | None) -> list[str]:
    """Return ``names`` without weights that are stored ``twice``, and without layers for multi-token prediction.

    These layers (``num_nextn_predict_layers``) follow those of the network: transformers does not load them, and
    programs that quantise the network leave them plain.
    """
    names = [name for name in names if name not in twice]
    config = configuration(folder) if names and folder is not None else {}
    parts = [part for part in (*(config.get(one) for one in OF_TEXT), config) if isinstance(part, dict)]
    part = next((one for one in parts if LAYERS in one), {})
    first, more = part.get(LAYERS), part.get(FURTHER, config.get(FURTHER))
    if type(first) is not int or type(more) is not int:
        return names
    return [name for name in names if not first <= _layer_of(name) < first + more]


def _layer_of(name: str) -> int:
    """Return the index of the language model's layer that has a tensor; -1 if none has it."""
    match = IN_LAYER.fullmatch(name)
    return int(match[2]) if match is not None and (match[1] or "") in HEADS else -1


@notes_of(NoteKind.QUANTISATION)
def disagreeing_files(
    path: str, codes: QuantisedTensors, metadata: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield notes on quantisation settings that differ from those in the first place that has any (metadata, files).

    ``metadata`` are the settings in the metadata of the weights; ``files`` has the settings of the files in the same
    folder, by file name.
    """
    said = {name: one for name, one in {"its metadata": metadata, **files}.items() if one}
    first, settings = next(iter(said.items()), ("", {}))
    coded = [QuantisedModule.of(one.method, one.name) for one in codes.tensors] if len(said) > 1 else []
    for name, other in said.items():
        there, back = disagreements(coded, other, settings), disagreements(coded, settings, other)
        for field, theirs, ours in dict.fromkeys([*there, *((field, one, two) for field, two, one in back)]):
            yield f"{escape(path)}: {field} is {escape(ours)} in {first}, and {escape(theirs)} in {name}"
    yield from _other_algorithm(path, codes, files.get(MODELOPT, {}))


@notes_of(NoteKind.QUANTISATION)
def _other_algorithm(path: str, codes: QuantisedTensors, modelopt: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the settings of ModelOpt say 4-bit or 8-bit floats, but no tensor has such an encoding."""
    own = modelopt.get("quantization")
    algorithm = str(own.get("quant_algo")) if isinstance(own, dict) else ""
    wanted = next((kinds for word, kinds in OF_MODELOPT.items() if word in algorithm), ())
    known = [one for one in codes.tensors if family(one.method) in KNOWN]
    if wanted and known and not any(family(one.method) in wanted for one in known):
        shows = f"the shapes of {count(len(known), 'quantised tensor')} say {escape(known[0].method)}"
        says = f"{MODELOPT} says quant_algo {escape(algorithm)}, but {shows}"
        yield f"{escape(path)}: {says}: {listing([one.name for one in known], SHOWN)}"


@notes_of(NoteKind.QUANTISATION)
def plain_integers(path: str, codes: QuantisedTensors, tensors: Tensors) -> Iterator[str]:
    """Yield a note if matrices called ``weight`` are integers, and nothing shows that they are quantised codes."""
    found = [key for key, info in tensors.items() if are_plain_integers(key, info) and key not in codes.by_key]
    if found:
        are = "1 weight is a matrix" if len(found) == 1 else f"{len(found)} weights are matrices"
        yield (
            f"{escape(path)}: {are} of integers without scales: they are treated as plain integers, not as codes of "
            f"quantised weights: {listing(found, SHOWN)}"
        )


@notes_of(NoteKind.QUANTISATION)
def missing_settings(
    path: str,
    codes: QuantisedTensors,
    tensors: Tensors,
    folder: Folder | None,
    settings: Mapping[str, Any],
    metadata: Mapping[str, str],
    elsewhere: Callable[[], Sequence[str]],
) -> Iterator[str]:
    """Yield a note if config.json has no settings for quantised tensors, or has settings but nothing is quantised.

    ``settings`` are the quantisation settings, wherever they were found. Settings that are only in ``metadata``, the
    metadata of the file, are not found by transformers. ``elsewhere`` is a function that returns the keys of the other
    shards, whose tensors may be quantised.
    """
    if folder is None:
        return
    if codes:
        ours = not settings or SETTINGS in metadata
        there = settings_by_file(folder)
        yield from _only_beside(path, codes, there) if configuration(folder) else ()
        named = [one.name for one in known_by_settings(codes)] if ours and not there else []
        config = configuration(folder) if named else {}
        if config and not _speaks_of_it(config):
            floats = any(
                tensors[one.codes].dtype.startswith("float8_") for one in codes.tensors if one.codes in tensors
            )
            lacks = f"{escape(path)}: its config.json has no quantization_config for "
            kind = NoteKind.CODES_AS_WEIGHTS if floats else NoteKind.QUANTISATION
            number = f"{count(len(named), 'quantised tensor')}{AS_WEIGHTS if floats else ''}"
            yield Note(kind, f"{lacks}{number}: {listing(named, SHOWN)}")
        yield from _under_old_name(path, codes, configuration(folder))
        return
    plain = next((key for key, info in tensors.items() if _could_be_quantised(key, info)), "")
    settings = quantisation_settings(folder) if plain and not scheme_of(folder.uri) else {}
    method = stores_codes(settings)
    yield from _without_masks(path, tensors, settings, elsewhere() if settings.get("sparsity_config") else ())
    if method and not elsewhere():
        kind = NoteKind.QUANTISATION if method.startswith("bitsandbytes") else NoteKind.QUANTISATION_REFUSED
        yield Note(
            kind,
            f"{escape(path)}: its quantization_config says quant_method {escape(method)}, but no tensor is quantised: "
            f"{escape(plain)} is {tensors[plain].dtype}",
        )


@notes_of(NoteKind.QUANTISATION)
def _under_old_name(path: str, codes: QuantisedTensors, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if config.json has settings only under their old name (compressed-tensors before 0.5)."""
    if OLD_SETTINGS in config and SETTINGS not in config and (named := known_by_settings(codes)):
        yield (
            f"{escape(path)}: its config.json has {OLD_SETTINGS} and no {SETTINGS}: transformers uses the codes of "
            f"{count(len(named), 'quantised tensor')} as weights: {listing([one.name for one in named], SHOWN)}"
        )


@notes_of(NoteKind.QUANTISATION)
def _only_beside(path: str, codes: QuantisedTensors, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a note if GPTQ or AWQ settings are only in a file of AutoGPTQ or AutoAWQ, and not in config.json."""
    name = next(iter(files), "")
    named = [one.name for one in codes.tensors if family(one.method) in OF_FILES]
    if name in ALONE and named:
        yield (
            f"{escape(path)}: only {name} has settings for {count(len(named), 'quantised tensor')}, but transformers "
            f"reads only config.json: {listing(named, SHOWN)}"
        )


def _speaks_of_it(config: Mapping[str, Any]) -> bool:
    """Return whether a field name in a configuration, at any depth, contains "quant", "quip" or "compression"."""
    level: list[Any] = [config]
    while level:
        one = level.pop()
        if isinstance(one, dict):
            if any(word in name for name in one for word in ("quant", "quip", "compression")):
                return True
            level += one.values()
    return False


def _could_be_quantised(key: str, info: TensorInfo) -> bool:
    """Return whether a tensor is a layer's weight matrix, not quantised, that most methods would quantise."""
    if len(info.shape) != 2 or min(info.shape) < SMALLEST or not key.endswith(".weight"):
        return False
    is_float = DTYPES[info.dtype].kind == "float" and DTYPES[info.dtype].bits > 8
    return is_float and any(map(str.isdigit, key.split("."))) and not any(word in key for word in OTHERS)
