"""What does not go together in an output: llama.cpp's names and another format, or its metadata and other names."""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint.checkpoint import Checkpoint
from ...engine.inputs import PlanInputs
from ...errors import ConfigError, PlanError
from ...formats._safetensors_writer import SafetensorsWriter
from ...formats.ggml.writer import RESERVED
from ...planning.llama_cpp.model_types import MODEL_TYPES
from ...planning.llama_cpp.names import ARCHITECTURES, in_llama_cpp, in_transformers
from ...planning.plan.plan import Plan
from ...util.text import escape, listing
from ..model_folder.folder import model_folder
from .contradictions import metadata_notes, shape_of_values
from .layouts import ARCHITECTURE

__all__ = ["check_given", "check_names", "notes_on_other_format", "source_notes"]

_REMEDY = "ckpt convert X --layout gguf -o y.gguf"


def check_given(given: Mapping[str, str]) -> None:
    """Raise ConfigError if a user sets an entry of GGUF that says how the file was made or split."""
    for key in RESERVED:
        if given.get(key):
            raise ConfigError(f"the name {key} in metadata is reserved in GGUF.", hint="Choose another name.")


def check_names(plan: Plan, inputs: PlanInputs, architecture: str) -> tuple[str, ...]:
    """Return a note on a GGUF output whose tensors do not have llama.cpp's names; or ().

    ``architecture`` is what its metadata will name. Raises PlanError if it is one and the names are transformers'.
    """
    keys = [step.key for step in plan.steps]
    if architecture in ARCHITECTURES and in_transformers(keys):
        raise PlanError(
            f"the metadata name llama.cpp's architecture {architecture}, and the tensors have those of "
            f"transformers, as {escape(next(key for key in keys if in_transformers([key])))}.",
            hint=f"Write it in transformers' format, then {_REMEDY}; or --set-metadata {ARCHITECTURE}= leaves the "
            "architecture out.",
        )
    if architecture in ARCHITECTURES and keys and not in_llama_cpp(keys):
        return (f"the metadata name llama.cpp's architecture {architecture}, and the tensors do not have its names",)
    if architecture or not inputs.sources or not in_transformers(keys):
        return ()
    if model_folder(inputs.sources[0]).config.get("model_type") not in MODEL_TYPES:
        return ()
    return (
        "llama.cpp will not load the output, whose tensors have the names of transformers: from a folder with its "
        f"config.json, {_REMEDY} gives them llama.cpp's",
    )


def source_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return notes on metadata of a GGUF file that its tensors or its tokens contradict."""
    shapes = {key: shape_of_values(one.dtype, one.shape) for key, one in checkpoint.items()}
    tokens = checkpoint.header.stored.get("tokenizer.ggml.tokens")
    return metadata_notes(shapes, checkpoint.metadata, tokens.items if tokens is not None else 0)


def notes_on_other_format(plan: Plan, format: str) -> tuple[str, ...]:
    """Return notes on an output in a ``format`` that is not GGUF: llama.cpp's layout, metadata that it cannot store."""
    notes = []
    if plan.metadata.get(ARCHITECTURE) in ARCHITECTURES and in_llama_cpp([step.key for step in plan.steps]):
        notes.append(
            "the tensors have the names and layout of llama.cpp, which reads GGUF alone: for other programs, "
            "ckpt convert X.gguf --layout transformers"
        )
    given: Mapping[str, str] = plan.arguments.get("metadata") or {}
    lost = [key for key, value in given.items() if value]
    if lost and format != SafetensorsWriter.name:
        notes.append(f"not written, since {format} stores no metadata: {listing(lost)}")
    return tuple(notes)
