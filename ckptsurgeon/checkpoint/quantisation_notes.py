"""What settings of quantisation say that is not so of the tensors that they lie beside, as notes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..storage.read.base import Folder
from ..storage.read.uri import scheme_of
from ..tensors.dtypes import DTYPES
from ..tensors.encodings._agreement import Decoded, contradictions, disagreements, left_out, stores_codes
from ..tensors.encodings._codes import Codes
from ..tensors.encodings._methods import known_by_settings
from ..tensors.encodings._partners import broken_partners
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing
from .quantisation import configuration, quantisation_settings

__all__ = ["at_odds", "contradictory", "incomplete", "of_other_width", "unsaid"]

Tensors = Mapping[str, TensorInfo]
OTHERS = ("norm", "embed", "router", ".gate.")
"""Words in names of weights of layers that methods of quantisation leave as they are."""
SMALLEST = 16
"""Rows and columns of what any method takes."""
SHOWN = 3
WIDE, GATE = re.compile(r"\.\d+\..*\.(?:[qkv]_proj|gate_proj|up_proj)\.weight$"), ".gate_proj."
"""Weights of layers that have as many columns as the model is wide, in most models, and one that all of these have."""
BY_SETTINGS = re.compile("MLX|^int\\d+ packed")
"""Methods whose codes have as many columns as settings say."""


def contradictory(path: str, codes: Codes, tensors: Tensors, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the settings of codes say otherwise than the shapes of these."""
    for (field, said, found), names in contradictions(codes, tensors, settings).items():
        yield (
            f"{escape(path)}: its quantization_config says {field} {escape(said)}, but the shapes of "
            f"{count(len(names), 'quantised tensor')} say {escape(found)}: {listing(names, SHOWN)}"
        )
    for by, names in left_out(codes, settings).items():
        yield (
            f"{escape(path)}: its quantization_config leaves {count(len(names), 'quantised tensor')} out by "
            f"{escape(by)}: {listing(names, SHOWN)}"
        )


def of_other_width(path: str, codes: Codes, folder: Folder | None) -> Iterator[str]:
    """Say that by its settings a model has no codes as wide as config.json says that it is."""
    found = [one for one in codes.tensors if one.shape and BY_SETTINGS.search(one.method) and WIDE.search(one.name)]
    if folder is None or not any(GATE in one.name for one in found):
        return
    config = configuration(folder)
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    widths = [part["hidden_size"] for part in parts if type(part.get("hidden_size")) is int]
    if len(widths) == 1 and all(one.shape[-1] != widths[0] for one in found if one.shape):
        columns = found[0].shape[-1] if found[0].shape else 0
        yield (
            f"{escape(path)}: by its quantization_config {count(len(found), 'quantised tensor')} of layers have other "
            f"columns than config.json says, {columns} and not {widths[0]} (hidden_size): "
            f"{listing([one.name for one in found], SHOWN)}"
        )


def incomplete(path: str, codes: Codes, tensors: Tensors, elsewhere: Sequence[str]) -> Iterator[str]:
    """Yield which parts quantised tensors lack that those like them have; ``elsewhere`` has keys of other shards."""
    for one in broken_partners(codes, tensors, frozenset(elsewhere)):
        number, is_one = count(len(one.names), "quantised tensor"), len(one.names) == 1
        like, part = f"{one.others} like {'it' if is_one else 'them'} have", escape(one.part)
        has = f"{'lacks' if is_one else 'lack'} {part}, which {like}"
        if one.block:
            has = f"{'has' if is_one else 'have'} too few or too many values in {part} for blocks of {one.block}"
            has += f", which {like}" if one.others else ""
        yield f"{escape(path)}: {number} {has}: {listing(one.names, SHOWN)}"


def at_odds(
    path: str, codes: Codes, metadata: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what files say of the same codes otherwise than the first that says something of them.

    ``metadata`` are the settings in the file of the weights, ``files`` those of the files beside it.
    """
    said = {name: one for name, one in {"its metadata": metadata, **files}.items() if one}
    first, settings = next(iter(said.items()), ("", {}))
    coded = [Decoded.of(one.method, one.name) for one in codes.tensors] if len(said) > 1 else []
    for name, other in said.items():
        there, back = disagreements(coded, other, settings), disagreements(coded, settings, other)
        for field, theirs, ours in dict.fromkeys([*there, *((field, one, two) for field, two, one in back)]):
            yield f"{escape(path)}: {field} is {escape(ours)} in {first}, and {escape(theirs)} in {name}"


def unsaid(
    path: str,
    codes: Codes,
    tensors: Tensors,
    folder: Folder | None,
    settings: Mapping[str, Any],
    elsewhere: Callable[[], Sequence[str]],
) -> Iterator[str]:
    """Say that a folder's config.json speaks of no quantisation beside codes, or of one beside plain weights.

    ``settings`` are those of the codes; ``elsewhere`` gives the keys of a shard's other shards, which may have codes.
    """
    if folder is None:
        return
    if codes:
        named = [one.name for one in known_by_settings(codes)] if not settings else []
        config = configuration(folder) if named else {}
        if config and not _speaks_of_it(config):
            yield (
                f"{escape(path)}: its config.json has no quantization_config, beside "
                f"{count(len(named), 'quantised tensor')}: {listing(named, SHOWN)}"
            )
        return
    plain = next((key for key, info in tensors.items() if _could_be_quantised(key, info)), "")
    method = stores_codes(quantisation_settings(folder)) if plain and not scheme_of(folder.uri) else ""
    if method and not elsewhere():
        yield (
            f"{escape(path)}: its quantization_config says quant_method {escape(method)}, and no tensor is quantised: "
            f"{escape(plain)} is {tensors[plain].dtype}"
        )


def _speaks_of_it(config: Mapping[str, Any]) -> bool:
    """Whether any field of a configuration, at whatever depth, is called after quantisation."""
    level: list[Any] = [config]
    while level:
        one = level.pop()
        if isinstance(one, dict):
            if any(word in name for name in one for word in ("quant", "quip", "compression")):
                return True
            level += one.values()
    return False


def _could_be_quantised(key: str, info: TensorInfo) -> bool:
    """Whether a tensor is a weight of a layer, as a plain number."""
    if len(info.shape) != 2 or min(info.shape) < SMALLEST or not key.endswith(".weight"):
        return False
    is_float = DTYPES[info.dtype].kind == "float" and DTYPES[info.dtype].bits > 8
    return is_float and any(map(str.isdigit, key.split("."))) and not any(word in key for word in OTHERS)
