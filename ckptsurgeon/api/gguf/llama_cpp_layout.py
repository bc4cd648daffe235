"""Converts checkpoints from the layout of transformers to the layout of llama.cpp, and back."""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.layouts.layout import Layout, LayoutChange
from ...planning.layouts.recognise import recognised
from ...planning.llama_cpp.checks import check_complete
from ...planning.llama_cpp.deepseek import PARTS
from ...planning.llama_cpp.layout import (
    COMPUTED_THERE,
    EMBEDDING,
    HEAD,
    KEYS,
    QUERIES,
    experts_of,
    to_llama_cpp,
    to_transformers,
)
from ...planning.llama_cpp.model_types import MODEL_TYPES
from ...planning.llama_cpp.names import (
    ARCHITECTURES,
    DEEPSEEK,
    FUSED,
    GPT_OSS,
    PHI_3,
    in_llama_cpp,
    in_transformers,
)
from ...planning.llama_cpp.regrouping import NOTHING
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ..layouts.named_layout import ARCHITECTURE, AUTO, TRANSFORMERS, NamedLayout
from ..model_folder.config import untied_by_default
from ..model_folder.folder import ModelFolder
from .block_tensors import is_whole_model
from .configuration import described
from .deepseek_layout import deepseek_to_gguf, deepseek_to_transformers
from .gpt_oss import check_gpt_oss, decoded_experts, experts_in_file, experts_of_folder, rope_note, with_codes
from .heads import fused_heads, heads_of
from .phi_3 import phi_3_factors
from .rope import factors_of
from .sliding_window import window_notes

__all__ = ["llama_cpp_layout"]

TIED = (
    "lm_head.weight is left out, since config.json says that the embedding is the output layer (tie_word_embeddings); "
    "if lm_head.weight differs from the embedding, set tie_word_embeddings: false in config.json to keep it"
)


OUTPUT = "output.weight"
NO_OUTPUT = Note(
    NoteKind.MISSING_TENSORS,
    f"there is no {OUTPUT}, so llama.cpp takes token_embd.weight as output layer: set tie_word_embeddings: "
    "true in config.json, or transformers initialises the output layer with random values",
)

FLUX, ORIGINAL = "flux", "bfl"
"""The family of Flux, also its architecture in GGUF, and the layout of its original code."""
DIFFUSION = "stable-diffusion"
"""The family of Stable Diffusion."""


def llama_cpp_layout(name: str, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    """Return the conversion of a checkpoint to the layout ``name``: "gguf", "transformers" or "auto".

    "auto" means "gguf" for a model of transformers that llama.cpp supports; any other model keeps its layout. Raises
    PlanError if the layout of the checkpoint is not known.
    """
    if name == TRANSFORMERS:
        return _from_gguf(checkpoint)
    if name == AUTO and (checkpoint.header.stored or _is_done(checkpoint)):
        return NamedLayout()
    architecture = MODEL_TYPES.get(str(folder.config.get("model_type")), "")
    if not architecture:
        return _unknown(name == AUTO, checkpoint, folder)
    return _to_gguf(architecture, checkpoint, folder)


def _is_done(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint in another format than GGUF already has llama.cpp's names."""
    return ARCHITECTURE in checkpoint.metadata and in_llama_cpp(checkpoint) and not in_transformers(checkpoint)


def _unknown(is_auto: bool, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    stated = folder.config.get("model_type")
    why = f"the model_type is {escape(stated, 40)}" if isinstance(stated, str) else "there is no config.json"
    known = {family.name: one for family, one in recognised(checkpoint)} if is_auto else {}
    if FLUX in known:
        return _of_flux(known[FLUX], checkpoint)
    if DIFFUSION in known:
        return _of_stable_diffusion(known[DIFFUSION], checkpoint)
    if is_auto:
        keep = "its tensors keep their names, because llama.cpp's layout of them is not known"
        note = Note(NoteKind.METADATA_REFUSED, f"llama.cpp will not load the output: {keep}: {why}")
        return NamedLayout(notes=(note,))
    raise PlanError(
        f"llama.cpp's layout of {escape(checkpoint.path)} is not known: {why}.",
        hint=f"The known model types are {', '.join(MODEL_TYPES)}; --layout keep leaves the layout unchanged.",
    )


def _of_flux(layout: Layout, checkpoint: Checkpoint) -> NamedLayout:
    """Return the layout of Flux in GGUF: ComfyUI-GGUF reads the names of the original code, and needs an architecture.

    https://github.com/city96/ComfyUI-GGUF/blob/main/loader.py
    """
    if layout.name == ORIGINAL:
        note = (
            f"{ARCHITECTURE} is {FLUX}, with which ComfyUI-GGUF reads the output; llama.cpp reads no diffusion models"
        )
        return NamedLayout(metadata={ARCHITECTURE: FLUX}, notes=(note,))
    said = (
        f"ComfyUI-GGUF will not load the output: its tensors have the names of {layout.library}: first run ckpt "
        f"convert {escape(checkpoint.path)} --layout {ORIGINAL} -o NAME.safetensors"
    )
    return NamedLayout(notes=(Note(NoteKind.METADATA_REFUSED, said),))


def _of_stable_diffusion(layout: Layout, checkpoint: Checkpoint) -> NamedLayout:
    """Return the layout of a U-Net in GGUF: ComfyUI-GGUF reads the names of the original code, without a prefix.

    It knows the architectures sd1, also of Stable Diffusion 2, and sdxl.
    """
    if "input_blocks.0.0.weight" not in checkpoint:
        said = (
            "llama.cpp reads no diffusion models, and ComfyUI-GGUF reads only U-Nets with the names of the original "
            "code, as in input_blocks.0.0.weight"
        )
        return NamedLayout(notes=(Note(NoteKind.METADATA_REFUSED, said),))
    name = "sdxl" if "unet.add_embedding.linear_1" in layout.names else "sd1"
    note = f"{ARCHITECTURE} is {name}, with which ComfyUI-GGUF reads the output; llama.cpp reads no diffusion models"
    return NamedLayout(metadata={ARCHITECTURE: name}, notes=(note,))


def _to_gguf(architecture: str, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    decoded = decoded_experts(checkpoint) if architecture == GPT_OSS else None
    if checkpoint.codes and decoded is None:
        raise PlanError(
            f"the weights of {escape(checkpoint.path)} are quantised, but llama.cpp's layout needs plain numbers.",
            hint="Decode the weights with --dequantize, or leave the layout unchanged with --layout keep.",
        )
    if decoded is not None:
        change, metadata, notes = _named(architecture, decoded, folder)
        change, notes = with_codes(change), (*notes, "the experts stay mxfp4, with the same values")
    else:
        named = deepseek_to_gguf(checkpoint, folder) if architecture == DEEPSEEK else None
        change, metadata, notes = named or _named(architecture, checkpoint, folder)
    said = f"the tensors get llama.cpp's names and layout for the architecture {architecture}"
    return NamedLayout(change, metadata, (said, *notes), is_gguf=True)


def _named(
    architecture: str, checkpoint: Checkpoint, folder: ModelFolder
) -> tuple[LayoutChange, Mapping[str, str], tuple[str, ...]]:
    """Return the change to llama.cpp's layout for a model without quantised tensors, the metadata, and notes."""
    config, keys = folder.config, list(checkpoint)
    names = ("num_attention_heads", "num_key_value_heads")
    stated = (config.get(names[0]), config.get(names[1]))
    if architecture == PHI_3:
        heads = fused_heads(checkpoint, stated, names)
        factors = phi_3_factors(config, heads.size)
    else:
        heads = heads_of(checkpoint, (QUERIES, KEYS), stated, names)
        values = factors_of(config, architecture, heads.size)
        factors = {"rope_freqs.weight": values} if values else {}
    layers = len({key.split(".")[2] for key in checkpoint if key.startswith("model.layers.")})
    experts, regrouping = experts_of(architecture, keys), NOTHING
    notes = window_notes(config, architecture, layers)
    if architecture == GPT_OSS:
        check_gpt_oss(config, layers)
        regrouping, experts = experts_of_folder(config, checkpoint)
        notes += rope_note(config)
    change = to_llama_cpp(architecture, keys, heads, tied=folder.is_tied, factors=factors, regrouping=regrouping)
    check_complete(keys)
    if folder.is_tied and {f"{HEAD}.weight", f"{EMBEDDING}.weight"} <= checkpoint.keys():
        notes += (TIED,)
    return change, described(config, architecture, layers=layers, size=heads.size, experts=experts), notes


def _from_gguf(checkpoint: Checkpoint) -> NamedLayout:
    architecture = checkpoint.metadata.get(ARCHITECTURE, "")
    if architecture not in ARCHITECTURES:
        has = f"its architecture is {escape(architecture, 40)}" if architecture else f"it has no {ARCHITECTURE}"
        raise PlanError(
            f"transformers' layout for {escape(checkpoint.path)} is not known: {has}.",
            hint=f"The known architectures are {', '.join(ARCHITECTURES)}; --layout keep leaves the layout unchanged.",
        )
    if architecture == DEEPSEEK:
        change = deepseek_to_transformers(checkpoint)
    else:
        names = (f"{architecture}.attention.head_count", f"{architecture}.attention.head_count_kv")
        theirs, stored = ARCHITECTURES[architecture].names, checkpoint.metadata
        stated = (stored.get(names[0]), stored.get(names[1]))
        if architecture == PHI_3:
            heads = fused_heads(checkpoint, stated, names, theirs[FUSED])
        else:
            heads = heads_of(checkpoint, (theirs[QUERIES], theirs[KEYS]), stated, names)
        regrouping = experts_in_file(checkpoint) if architecture == GPT_OSS else NOTHING
        change = to_transformers(architecture, list(checkpoint), heads, regrouping=regrouping)
    notes = [
        f"the tensors get transformers' names and layout for the architecture {architecture}; a GGUF file has neither "
        "the config.json nor the tokeniser's files that transformers reads: copy those of the original model"
    ]
    computed = [one for one in change.exclude if one in COMPUTED_THERE]
    if computed:
        notes.append(
            f"left out: {listing(computed)}, which transformers computes: config.json needs the fields that scale the "
            "rotary embedding"
        )
    left = [one for one in change.exclude if one in PARTS]
    if left:
        notes.append(f"left out: {listing(left)}, whose values the output already has from attn_kv_b")
    if _is_untied(architecture) and is_whole_model(checkpoint, checkpoint.metadata):
        notes += [] if OUTPUT in checkpoint else [NO_OUTPUT]
    return NamedLayout(change, None, tuple(notes), without=(ARCHITECTURE,))


def _is_untied(architecture: str) -> bool:
    """Return whether models of an architecture have an untied output layer by default.

    This is the default of transformers: it applies if config.json does not contain ``tie_word_embeddings``.
    """
    return any(untied_by_default({"model_type": one}) for one, theirs in MODEL_TYPES.items() if theirs == architecture)
