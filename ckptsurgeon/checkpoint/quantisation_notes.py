"""Makes notes on quantised tensors that contradict each other, or contradict the quantisation settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..storage.read.base import Folder
from ..tensors.info import TensorInfo
from ..tensors.quantised.agreement import contradictions, left_out, plain_heads
from ..tensors.quantised.config_groups import untargeted
from ..tensors.quantised.contradictions import Contradiction
from ..tensors.quantised.encoding import QuantisedTensors, are_plain_integers
from ..tensors.quantised.exclusions import HEADS
from ..tensors.quantised.methods import family
from ..tensors.quantised.packings import AUTOROUND_NAMES, PACKING, assumed_packing, packing_of
from ..tensors.quantised.parts import IncompleteTensors
from ..tensors.quantised.plain_weights import plain_among_codes, plain_kinds
from ..tensors.quantised.sizes import unfit_sizes
from ..tensors.quantised.unlike import stored_twice, unfit_parts
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing
from .quantisation import configuration
from .settings_notes import without_masks

__all__ = [
    "contradictory",
    "of_other_width",
    "plain_integers",
    "unfit",
    "unlike_others",
]

Tensors = Mapping[str, TensorInfo]
SHOWN = 3
ONE = {"have": "has", "are": "is", "need": "needs"}
"""{verb in the plural: verb in the singular}."""
IN_LAYER, LAYERS = re.compile(r"(?:(.*?)\.)??layers\.(\d{1,9})\..*"), "num_hidden_layers"
FURTHER = "num_nextn_predict_layers"
OF_TEXT = ("text_config", "llm_config", "language_config")
"""The sections of config.json that describe the language model of a larger model."""
WIDE, GATE = re.compile(r"\.\d+\..*\.(?:[qkv]_proj|gate_proj|up_proj)\.weight$"), ".gate_proj."
"""Matches weights with ``hidden_size`` columns. This holds only in models that have names with ``GATE``."""
BY_SETTINGS = re.compile("MLX|^int\\d+ packed")
"""Matches quantisation methods whose settings (bits) determine the number of columns of a weight."""


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
        kind = NoteKind.QUANTISATION_REFUSED if _is_refused(fact) else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {says}: {listing(names, SHOWN)}")
    yield from _without_packing(path, codes, settings)
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
    yield from without_masks(path, tensors, settings, elsewhere)
    for said, names in plain_heads(codes, tensors, settings).items():
        are = f"{'it is' if len(names) == 1 else 'they are'} not quantised"
        are = f"and does not exclude {listing(names, SHOWN)}, but {are}"
        yield f"{escape(path)}: its quantization_config says {said} {are}"


def _is_refused(fact: Contradiction) -> bool:
    """Return whether loaders fail to decode the codes because of a contradiction between settings and tensors.

    They fail if the settings have other bits, group sizes, block sizes or packing than the codes, GPTQ's method for
    codes of AWQ (or the reverse), or zero points that the tensors lack.

    A wrong block size does no harm if the scales are for rows, columns or whole tensors: such tensors are decoded
    without a block size. The note's verb is then "have".
    """
    of_shapes = fact.field.split()[0] in ("bits", "group_size", "num_bits", "weight_block_size") and fact.verb == "say"
    is_other = (fact.field, fact.said) in (("quant_method", "gptq"), ("quant_method", "awq"), ("symmetric", "false"))
    return fact.field == PACKING or is_other or (of_shapes and fact.said != "null")


def _without_packing(path: str, codes: QuantisedTensors, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on the ``packing_format`` that is assumed, if AutoRound's settings do not have it.

    AutoRound itself loads no codes of AWQ without this field, and no codes at all if it is null.
    """
    if settings.get("quant_method") not in AUTOROUND_NAMES or packing_of(settings) is not None:
        return
    kinds = {family(one.method) for one in codes.tensors}
    for kind, assumed in ((one, assumed_packing(one)) for one in sorted(kinds)):
        if assumed:
            is_loaded = PACKING not in settings and kind == "GPTQ"
            says = f"its quantization_config {f'says {PACKING} null' if PACKING in settings else f'has no {PACKING}'}"
            without = "with this value" if PACKING in settings else "without this field"
            refused = "" if is_loaded else f"; {without}, AutoRound loads no codes of {kind}"
            note = f"{escape(path)}: {says}: {assumed} is assumed for its codes of {kind}{refused}"
            yield Note(NoteKind.REMARK if is_loaded else NoteKind.QUANTISATION_REFUSED, note)


def _subject(verb: str, number: str, names: Sequence[str]) -> str:
    if verb == "say":
        return f"the shapes of {number} say"
    return f"{number} {ONE[verb] if len(names) == 1 else verb}"


@notes_of(NoteKind.QUANTISATION)
def of_other_width(path: str, codes: QuantisedTensors, folder: Folder | None) -> Iterator[str]:
    """Yield a note if no quantised weight that reads hidden states has as many columns as ``hidden_size`` says.

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

    These layers (``num_nextn_predict_layers``) follow the layers of the network: transformers does not load them, and
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
    """Return the index of the language model's layer to which the tensor ``name`` belongs; -1 if it belongs to none."""
    match = IN_LAYER.fullmatch(name)
    return int(match[2]) if match is not None and (match[1] or "") in HEADS else -1


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
