"""Makes notes on quantisation settings that are missing, that loaders do not find, or that differ between files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..storage.read.base import Folder
from ..storage.read.uri import scheme_of
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..tensors.quantised.agreement import QuantisedModule, disagreements, stores_codes
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.methods import KNOWN, family, known_by_settings
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing
from .quantisation import SETTINGS, configuration, quantisation_settings, settings_by_file

__all__ = ["disagreeing_files", "missing_settings", "without_masks"]

Tensors = Mapping[str, TensorInfo]
OTHERS = ("norm", "embed", "router", ".gate.")
"""A weight with one of these texts in its name is plain in most quantised models."""
SMALLEST = 16
"""A weight with fewer rows or columns than this is plain in most quantised models."""
MODELOPT = "hf_quant_config.json"
ALONE, OF_FILES = ("quantize_config.json", "quant_config.json"), ("GPTQ", "AWQ")
"""The settings files of AutoGPTQ and AutoAWQ, and the encoding that each of them describes."""
OF_MODELOPT = {"NVFP4": ("nvfp4",), "MIXED": (), "FP8": ("fp8", "mxfp8")}
"""{word in the name of a ModelOpt algorithm: families of encodings that its weights may have}."""
OLD_SETTINGS = "compression_config"
"""The name of the settings before compressed-tensors 0.5; vLLM still reads this name, transformers 5 does not."""
SPARSE = ("sparse-bitmask", "sparse-24-bitmask")
"""Formats of compressed-tensors that store only non-zero weights, and a ``bitmask`` of their positions.

https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/config/base.py
"""
SHOWN = 3
AS_WEIGHTS = ", so that loaders use the codes as if they were weights"
"""The consequence of missing settings if codes are 8-bit floats, which have the shape of the weights."""
UNKNOWN = ", so that loaders refuse the codes, or ignore them and initialise the weights"
"""The consequence for all other codes, whose tensors have other names or other shapes than the weights."""


@notes_of(NoteKind.QUANTISATION)
def disagreeing_files(
    path: str, codes: QuantisedTensors, metadata: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield notes on quantisation settings that differ between the metadata of the weights and the files of the folder.

    ``metadata`` are the settings in the metadata of the weights; ``files`` has the settings of the files in the same
    folder, by file name. All are compared with the first settings that exist: in the metadata or, if it has none, in
    the first file.
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
        number, listed = count(len(known), "quantised tensor"), listing([one.name for one in known], SHOWN)
        yield (
            f"{escape(path)}: {MODELOPT} says quant_algo {escape(algorithm)}, but the shapes of {number} say "
            f"{escape(known[0].method)}: {listed}"
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

    ``settings`` are the quantisation settings, which may come from config.json, another file or ``metadata``, the
    metadata of the weights. transformers does not find settings that are only in ``metadata``. ``elsewhere`` is a
    function that returns the keys of the other shards, whose tensors may be quantised.
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
            number = f"{count(len(named), 'quantised tensor')}{AS_WEIGHTS if floats else UNKNOWN}"
            yield Note(NoteKind.MISSING_SETTINGS, f"{lacks}{number}: {listing(named, SHOWN)}")
        yield from _under_old_name(path, codes, configuration(folder))
        return
    plain = next((key for key, info in tensors.items() if _could_be_quantised(key, info)), "")
    settings = quantisation_settings(folder) if plain and not scheme_of(folder.uri) else {}
    method = stores_codes(settings)
    yield from without_masks(path, tensors, settings, elsewhere() if settings.get("sparsity_config") else ())
    if method and not elsewhere():
        kind = NoteKind.QUANTISATION if method.startswith("bitsandbytes") else NoteKind.QUANTISATION_REFUSED
        yield Note(
            kind,
            f"{escape(path)}: its quantization_config says quant_method {escape(method)}, but no tensor is quantised: "
            f"{escape(plain)} is {tensors[plain].dtype}",
        )
    if plain and _lacks_method(configuration(folder).get(SETTINGS)) and not elsewhere():
        lacks = "its quantization_config has no quant_method, without which transformers does not load the model"
        is_plain = f"no tensor is quantised: {escape(plain)} is {tensors[plain].dtype}"
        yield Note(NoteKind.QUANTISATION_REFUSED, f"{escape(path)}: {lacks}, and {is_plain}")


def _lacks_method(settings: object) -> bool:
    """Return whether settings of quantisation name no method; ``load_in_4bit`` and the like mean bitsandbytes."""
    named = ("quant_method", "load_in_4bit", "load_in_8bit", "quant_algo")  # the last is that of ModelOpt
    return isinstance(settings, dict) and not any(settings.get(name) for name in named)


@notes_of(NoteKind.QUANTISATION)
def _under_old_name(path: str, codes: QuantisedTensors, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if config.json has quantisation settings only under an old name (compressed-tensors before 0.5)."""
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


@notes_of(NoteKind.QUANTISATION)
def without_masks(path: str, tensors: Tensors, settings: Mapping[str, Any], elsewhere: Sequence[str]) -> Iterator[str]:
    """Yield a note if the settings say that a bitmask of non-zero weights is stored, but no tensor is a bitmask."""
    sparse = settings.get("sparsity_config")
    stated = sparse.get("format") if isinstance(sparse, dict) else None
    if stated in SPARSE and not any(key.endswith(".bitmask") for key in (*tensors, *elsewhere)):
        says = f"its quantization_config says format {stated} (sparsity_config)"
        yield f"{escape(path)}: {says}, but there is no bitmask: the weights are stored in full, zeros included"
