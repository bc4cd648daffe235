"""Compares the components of a diffusers pipeline with their configurations, and with each other.

The fields of configurations are those of diffusers:
https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/unets/unet_2d_condition.py and
https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/autoencoder_kl.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...formats.unsupported.folders import object_in, pipeline_index
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import escape, shape_text
from .networks import missing_notes

__all__ = ["pipeline_notes"]

CONFIG = "config.json"
CLASS = "_class_name"
_CONDITIONED = re.compile(r"StableDiffusion(?!3)|LatentConsistencyModel|AnimateDiff|TextToVideoSD")
"""Matches the classes of pipelines whose U-Net attends to the joined outputs of CLIP's text encoders, as they are."""
_NETWORKS = ("UNet2DConditionModel", "UNetMotionModel", "UNet3DConditionModel")
_TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_NORM = re.compile(r"(?:text_model\.)?final_layer_norm\.weight")
_CROSS = re.compile(
    r"(?:(?P<way>down|up)_blocks\.(?P<level>\d+)|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_k\.weight"
)
_ENDS: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "UNet": (
        ("in_channels", 1, "conv_in.weight"),
        ("out_channels", 0, "conv_out.weight"),
        ("projection_class_embeddings_input_dim", 1, "add_embedding.linear_1.weight"),
        ("projection_class_embeddings_input_dim", 1, "class_embedding.linear_1.weight"),
    ),
    "AutoencoderKL": (
        ("in_channels", 1, "encoder.conv_in.weight"),
        ("out_channels", 0, "decoder.conv_out.weight"),
        ("latent_channels", 1, "decoder.conv_in.weight"),
    ),
}
"""Fields that are a dimension of a tensor: {beginning of the class's name: (field, dimension, key of the tensor)}."""

Tensors = Mapping[str, TensorInfo]


def pipeline_notes(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield notes on faults of a diffusers pipeline, or of the folder of one of its networks; none for other models."""
    folder = checkpoint.folder
    if folder is None:
        return
    index = pipeline_index(folder)
    if not index:
        yield from _network_notes("", object_in(folder, CONFIG), checkpoint)
        yield from missing_notes(checkpoint)
        return
    parts: dict[str, dict[str, TensorInfo]] = {}
    for key, info in checkpoint.items():
        name, _, rest = key.partition(".")
        parts.setdefault(name, {})[rest] = info
    for name, tensors in parts.items():
        if name in index:
            yield from _network_notes(f"{name}/", object_in(folder.inside(name), CONFIG), tensors)
    yield from missing_notes(checkpoint)
    yield from _width_notes(index, parts)


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _network_notes(place: str, config: Mapping[str, Any], tensors: Tensors) -> Iterator[str]:
    """Yield a note on each field of a network's configuration that contradicts its tensors.

    ``place`` is the folder of the network in its pipeline, with a slash.
    """
    kind = str(config.get(CLASS, ""))
    fields = [one for start, rows in _ENDS.items() if kind.startswith(start) for one in rows]
    for field, axis, key in fields:
        info, stated = tensors.get(key), config.get(field)
        if info is not None and type(stated) is int and len(info.shape) > axis and info.shape[axis] != stated:
            yield _contradicted(place, field, stated, key, info)
    if kind in _NETWORKS and config.get("encoder_hid_dim") is None:
        yield from _cross_notes(place, config.get("cross_attention_dim"), tensors)


def _contradicted(place: str, field: str, stated: object, key: str, info: TensorInfo) -> str:
    return f"{escape(place)}{CONFIG} has {field} {stated}, but {escape(key)} has shape {shape_text(info.shape)}"


def _cross_notes(place: str, stated: object, tensors: Tensors) -> Iterator[str]:
    """Yield a note if ``cross_attention_dim``, a number or a list with one for each level, contradicts the tensors."""
    for key, info in tensors.items():
        found = _CROSS.fullmatch(key)
        if not found or len(info.shape) != 2:
            continue
        level = int(found["level"] or 0)
        width = stated
        if isinstance(stated, list):
            levels = stated[::-1] if found["way"] == "up" else stated if found["way"] else stated[-1:]
            width = levels[level] if level < len(levels) else None
        if type(width) is int and info.shape[1] != width:
            yield _contradicted(place, "cross_attention_dim", stated, key, info)
            return


@notes_of(NoteKind.OTHER_COMPONENT)
def _width_notes(index: Mapping[str, Any], parts: Mapping[str, Tensors]) -> Iterator[str]:
    """Yield notes on networks of a pipeline that do not fit together, by the shapes of their tensors.

    ``index`` is the content of the pipeline's model_index.json, and ``parts`` has the tensors of each network.
    """
    unet, vae = parts.get("unet"), parts.get("vae")
    if unet is None or not _CONDITIONED.match(str(index.get(CLASS, ""))):
        return
    texts = {
        name: _text_width(parts[name]) for name in ("text_encoder", "text_encoder_2")
        if name in parts and _class(index, name) in _TEXTS
    }  # fmt: skip
    width, taken = sum(texts.values()), _cross_width(unet)
    is_projected = any(key.startswith("encoder_hid_proj.") for key in unet)
    if texts and all(texts.values()) and taken and width != taken and not is_projected:
        wide = " and ".join(f"{name} ({size} wide)" for name, size in texts.items())
        yield f"the outputs of {wide} do not fit the cross attention of unet, which takes {taken} for each token"
    latents, made = _size(vae or {}, "decoder.conv_in.weight", 1), _size(unet, "conv_out.weight", 0)
    # The networks of upscalers make a variance, too: one channel more (StableDiffusionLatentUpscalePipeline).
    fits = made in (latents, latents + 1, 2 * latents)
    if latents and made and not fits and _class(index, "vae") == "AutoencoderKL":
        yield f"unet makes {made} channels, but vae decodes {latents}"


def _class(index: Mapping[str, Any], name: str) -> str:
    entry = index.get(name)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""


def _text_width(tensors: Tensors) -> int:
    return next((info.shape[0] for key, info in tensors.items() if _NORM.fullmatch(key) and len(info.shape) == 1), 0)


def _cross_width(tensors: Tensors) -> int:
    """Return the width of the inputs to the cross attention of a U-Net; 0 if levels differ or there is none."""
    found = {info.shape[1] for key, info in tensors.items() if _CROSS.fullmatch(key) and len(info.shape) == 2}
    return found.pop() if len(found) == 1 else 0


def _size(tensors: Tensors, key: str, axis: int) -> int:
    info = tensors.get(key)
    return info.shape[axis] if info is not None and len(info.shape) > axis else 0
