"""Makes the metadata of a GGUF output: the typed entries of its source, and the entries that the plan sets."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...engine.inputs import PlanInputs
from ...engine.output.layout import OutputOptions, is_folder
from ...errors import ConfigError
from ...formats.base.header import ExtraEntries
from ...formats.ggml.values import BOOL, FLOAT32, INT32, TEXT, UINT32, Typed, kind_of, packed, parsed
from ...formats.ggml.writer import FORMAT_KEY, RESERVED
from ...planning.llama_cpp.names import ARCHITECTURES
from ...planning.plan.files import given_sources
from ...planning.plan.plan import Plan
from ...tensors.dtypes import DTYPES
from ...util.notes import notes_about
from ..layouts.named_layout import ARCHITECTURE, TRANSFORMERS
from ..model_folder.embedded import embedded_model
from ..model_folder.folder import model_folder
from .block_tensors import is_whole_model
from .contradictions import metadata_notes, shape_of_values
from .file_types import file_type_notes
from .new_tokens import maps_by_token, with_new_tokens
from .outputs import check_given, check_names
from .tokenizer import tokenizer_entries
from .tokenizer_notes import tokenizer_notes

__all__ = ["gguf_entries"]

FILE_TYPE, VERSION = "general.file_type", "general.quantization_version"
EMBEDDING = "token_embd.weight"
LONGEST = 200
"""String entries with more bytes than this are not compared with the tensors."""
FILE_TYPES = {
    "float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12,
    "q4_k": 15, "q5_k": 17, "q6_k": 18, "bfloat16": 32, "mxfp4": 38,
}  # fmt: skip
"""llama.cpp's file type (``enum llama_ftype``), by the dtype of most matrices in the file."""
UNMIXED_FILE_TYPES = {"q3_k": 11, "q4_k": 14, "q5_k": 16}
"""llama.cpp's file types, such as Q4_K_S (small), for files in which all quantised matrices have the same dtype."""
_OF_LLAMA_CPP = ("general.", "tokenizer.", *(f"{architecture}." for architecture in ARCHITECTURES))
"""Prefixes of llama.cpp's own entries. The type of a new entry with such a name is derived from its name and value."""

_OF_IMAGES = frozenset((
    "flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image",
))  # fmt: skip
"""The architectures of diffusion models, which have no tokens: ``IMG_ARCH_LIST`` in ComfyUI-GGUF's ``loader.py``."""


def gguf_entries(plan: Plan, inputs: PlanInputs, options: OutputOptions) -> tuple[ExtraEntries | None, tuple[str, ...]]:
    """Return the metadata of a GGUF output, and notes on missing or contradicting entries.

    The metadata are None if the output is a folder, or if the plan copies entries of a pickle that are not tensors.
    """
    if plan.carried.entries or is_folder(options):
        return None, ()
    given: Mapping[str, str] = plan.arguments.get("metadata") or {}
    check_given(given)
    source = _described_by(plan, inputs, given)
    is_mixed = sum(bool(one.header.stored) for one in inputs.sources[: len(given_sources(plan.sources))]) > 1
    planned = {key: said for key, said in plan.metadata.items() if key in given or not is_mixed}
    found = _of_source(replace(plan, metadata=planned), source, given) if source is not None else {}
    for key, said in planned.items():
        if key not in found and key not in (FORMAT_KEY, *RESERVED):
            found[key] = _new(key, said, is_given=key in given)
    rows = next((step.shape[0] for step in plan.steps if step.key == EMBEDDING), 0)
    notes: tuple[str, ...] = ()
    if source is not None and (embedded := embedded_model(source)) is not None and maps_by_token(plan):
        is_kept = source is _destination(plan, inputs)
        found, notes = with_new_tokens(found, plan, embedded, rows, is_kept=is_kept)
    if source is None and ARCHITECTURE in found and inputs.sources:
        folder = model_folder(inputs.sources[0])
        is_of_images = _said(found[ARCHITECTURE]) in _OF_IMAGES
        tokens, notes = ({}, ()) if is_of_images else tokenizer_entries(folder, rows)
        if folder.files:
            from ..model_folder.folder_checks import source_file_notes

            beside = notes_about(inputs.sources[0].path, source_file_notes(inputs.sources[0], folder))
            notes = (*notes, *(note for note in beside if note not in plan.notes))
        found |= {key: entry for key, entry in tokens.items() if key not in found and key not in given}
    is_another = any(step.dtype != step.source_dtype or step.operation for step in plan.steps)
    if FILE_TYPE in found if source is not None and is_another else ARCHITECTURE in found and source is None:
        found.update(_file_type(plan))
    texts = {key: _said(one) for key, one in found.items()}
    notes += check_names(plan, inputs, texts.get(ARCHITECTURE, ""))
    shapes = {step.key: shape_of_values(step.dtype, step.shape) for step in plan.steps}
    listed = found.get("tokenizer.ggml.tokens")
    number = int.from_bytes(listed.raw[4:12], "little") if listed is not None else 0  # after 4 bytes for the item type
    notes += metadata_notes(shapes, texts, number)
    if is_whole_model(shapes, texts):
        notes += (*file_type_notes(shapes, {step.key: step.dtype for step in plan.steps}, texts),)
    notes += (*tokenizer_notes(texts, number, lambda key, begin, size: found[key].raw[begin : begin + size]),)
    return ExtraEntries((), (found,)), notes


def _said(entry: Typed) -> str:
    """Return the value of an entry as text if it is a 32-bit number, a boolean or a short string; otherwise ''."""
    if entry.kind == TEXT and len(entry.raw) <= LONGEST:
        return entry.raw[8:].decode("utf-8", "replace")
    if entry.kind == BOOL:
        return "true" if any(entry.raw) else "false"
    if entry.kind == FLOAT32:
        return repr(struct.unpack("<f", entry.raw)[0])
    return str(int.from_bytes(entry.raw, "little")) if entry.kind in (UINT32, INT32) else ""


def _described_by(plan: Plan, inputs: PlanInputs, given: Mapping[str, str]) -> Checkpoint | None:
    """Return the GGUF file whose metadata are copied to the output: the destination, or one of the sources.

    If there is no GGUF destination, it is the first GGUF source with the same metadata as the plan; entries that the
    user sets (``given``) are not compared. If no source has the same metadata, it is the first GGUF source; None if
    there is no GGUF source.
    """
    kept = _destination(plan, inputs)
    if kept is not None and kept.header.stored:
        return kept
    stored = [one for one in inputs.sources if one.header.stored]
    rest = {key: value for key, value in plan.metadata.items() if key not in given}
    same = (one for one in stored if rest == {key: said for key, said in one.metadata.items() if key not in given})
    return next(same, stored[0] if stored else None)


def _destination(plan: Plan, inputs: PlanInputs) -> Checkpoint | None:
    """Return the checkpoint that is the destination of a transplant; None if there is none."""
    pairs = zip(plan.sources, inputs.sources, strict=False)
    return next((opened for planned, opened in pairs if planned.role == "destination"), None)


def _new(key: str, said: str, *, is_given: bool) -> Typed:
    """Return a new metadata entry that is in no GGUF source; ``said`` is its value as text.

    If the user gave the entry (``is_given``), or if its name is one of llama.cpp's, its type is derived from its name
    and value. Any other entry is a string.
    """
    kind = kind_of(key, said) if is_given or key.startswith(_OF_LLAMA_CPP) else TEXT
    try:
        return Typed(kind, parsed(key, said, kind))
    except ConfigError:
        if is_given:
            raise
        return Typed(TEXT, parsed(key, said, TEXT))


def _of_source(plan: Plan, source: Checkpoint, given: Mapping[str, str]) -> dict[str, Typed]:
    """Return the entries of a GGUF source, with the values that the plan sets and without entries that it removes.

    ``given`` has the entries that the user sets.
    """
    stored, texts = source.header.stored, source.metadata
    file = source.open_files()[source.files[0].name]
    found: dict[str, Typed] = {}
    without = (ARCHITECTURE,) if plan.arguments.get("layout") == TRANSFORMERS and ARCHITECTURE not in given else ()
    for key, entry in stored.items():
        if given.get(key) == "" or key in without:
            continue
        said = given.get(key, plan.metadata.get(key, texts.get(key)))
        if said == texts.get(key):
            found[key] = Typed(entry.kind, file.read(entry.offset, entry.nbytes))
        else:
            found[key] = Typed(entry.kind, parsed(key, said or "", entry.kind))
    return found


def _file_type(plan: Plan) -> Iterator[tuple[str, Typed]]:
    """Yield the entries ``general.file_type`` and ``general.quantization_version`` that the output of a plan needs.

    The file type is llama.cpp's number for the most frequent dtype of matrices, if it has a number. The version is
    needed only if there are tensors in blocks of codes.
    """
    if any(DTYPES[step.dtype].block for step in plan.steps):
        yield VERSION, Typed(UINT32, packed(UINT32, 2))
    kinds = Counter(step.dtype for step in plan.steps if len(step.shape) > 1)
    for dtype, _ in kinds.most_common(1):
        is_mixed = sum(bool(DTYPES[kind].block) for kind in kinds) > 1
        if dtype in FILE_TYPES:
            number = FILE_TYPES[dtype] if is_mixed else UNMIXED_FILE_TYPES.get(dtype, FILE_TYPES[dtype])
            yield FILE_TYPE, Typed(UINT32, packed(UINT32, number))
