"""Finds contradictions in an output, for example llama.cpp's metadata together with transformers' names of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint.checkpoint import Checkpoint
from ...engine.inputs import PlanInputs
from ...engine.output.layout import OutputOptions, writer_of
from ...errors import ConfigError, PlanError
from ...formats._safetensors_layout import SafetensorsWriter
from ...formats.ggml.writer import RESERVED
from ...planning.llama_cpp.model_types import MODEL_TYPES
from ...planning.llama_cpp.names import ARCHITECTURES, in_llama_cpp, in_transformers
from ...planning.plan.plan import Plan
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ..layouts.named_layout import ARCHITECTURE
from ..model_folder.embedded import embedded_model
from ..model_folder.folder import model_folder
from .block_tensors import is_whole_model
from .contradictions import metadata_notes, shape_of_values
from .file_types import file_type_notes

__all__ = ["check_given", "check_names", "notes_on_other_format", "source_notes"]

_REMEDY = "ckpt convert X --layout gguf -o y.gguf"


def check_given(given: Mapping[str, str]) -> None:
    """Raise ConfigError if the user sets a reserved entry: the recipe of the output, or how the file is split."""
    for key in RESERVED:
        if given.get(key):
            raise ConfigError(f"the name {key} in metadata is reserved in GGUF.", hint="Choose another name.")


def check_names(plan: Plan, inputs: PlanInputs, architecture: str) -> tuple[str, ...]:
    """Return a note on a GGUF output whose tensors do not have llama.cpp's names, and otherwise ().

    ``architecture`` is the architecture in the output's metadata, '' if there is none. Raises PlanError if llama.cpp
    has this architecture, but the tensors have the names of transformers.
    """
    keys = [step.key for step in plan.steps]
    if architecture in ARCHITECTURES and in_transformers(keys):
        raise PlanError(
            f"the metadata has llama.cpp's architecture {architecture}, but the tensors have the names of "
            f"transformers, for example {escape(next(key for key in keys if in_transformers([key])))}.",
            hint=f"Write the output in transformers' format, then run {_REMEDY}; or remove the architecture with "
            f"--set-metadata {ARCHITECTURE}=.",
        )
    if architecture in ARCHITECTURES and keys and not in_llama_cpp(keys):
        return (
            f"the metadata has llama.cpp's architecture {architecture}, but the tensors do not have the names of this "
            "architecture",
        )
    if architecture or not inputs.sources or not in_transformers(keys):
        return ()
    if model_folder(inputs.sources[0]).config.get("model_type") not in MODEL_TYPES:
        return ()
    why = "because its tensors have the names of transformers: for a folder with config.json"
    said = f"llama.cpp will not load the output, {why}, {_REMEDY} gives them llama.cpp's names"
    return (Note(NoteKind.METADATA_REFUSED, said),)


def source_notes(checkpoint: Checkpoint) -> tuple[Note, ...]:
    """Return notes on metadata of a GGUF file that contradict its tensors or its tokens."""
    shapes = {key: shape_of_values(one.dtype, one.shape) for key, one in checkpoint.items()}
    tokens = checkpoint.header.stored.get("tokenizer.ggml.tokens")
    metadata = {**dict.fromkeys(checkpoint.header.stored, ""), **checkpoint.metadata}
    number = tokens.items if tokens is not None else 0
    from .tokenizer_notes import tokenizer_notes

    model, dtypes = embedded_model(checkpoint), {key: one.dtype for key, one in checkpoint.items()}
    return (
        *metadata_notes(shapes, metadata, number),
        *(file_type_notes(shapes, dtypes, metadata) if is_whole_model(shapes, metadata) else ()),
        *(tokenizer_notes(metadata, number, model.part) if model is not None else ()),
    )


def notes_on_other_format(plan: Plan, inputs: PlanInputs, options: OutputOptions) -> tuple[str, ...]:
    """Return notes on an output in another format than GGUF: on llama.cpp's layout, and on lost metadata."""
    notes, name = [], writer_of(options).name
    stored = dict.fromkeys(key for one in inputs.sources for key in one.header.stored if key not in one.metadata)
    unstored = list(stored)
    if unstored:
        notes.append(f"metadata not written, since only GGUF stores them: {listing(unstored, 3)}")
    if plan.metadata.get(ARCHITECTURE) in ARCHITECTURES and in_llama_cpp([step.key for step in plan.steps]):
        notes.append(
            "the tensors have the names and layout of llama.cpp, which reads only GGUF: for other programs, "
            "run ckpt convert X.gguf --layout transformers"
        )
    given: Mapping[str, str] = plan.arguments.get("metadata") or {}
    lost = [key for key, value in given.items() if value]
    if lost and name != SafetensorsWriter.name:
        notes.append(f"metadata not written, since {name} stores none: {listing(lost)}")
    return tuple(notes)
