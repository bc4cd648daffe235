"""Notes on numbers in processor files that differ from the same numbers in config.json.

Pairs of fields are compared, for the model types in which both must be equal. In transformers 5.23, the processor
counts the tokens of an image with one field of such a pair, and the network computes the features of the image with the
other field. Only numbers that both files have are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count
from ..folder import ModelFolder
from .sections import PROCESSOR, Section, at_path, image_section, processor_section, video_section

__all__ = ["agreement_notes"]

OF_GRIDS = (
    "exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
    "qwen3_vl", "qwen3_vl_moe",
)  # fmt: skip
"""Model types whose processors cut images into a grid of patches, and merge neighbouring patches to one token."""
OMNI = ("qwen2_5_omni", "qwen3_omni_moe")
VISION = {
    **dict.fromkeys(OF_GRIDS, "vision_config"),
    **dict.fromkeys(OMNI, "thinker_config.vision_config"),
    "colqwen2": "vlm_config.vision_config",
}
"""{model type: dotted path of the configuration of its image encoder}"""
GRID = {"patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size", "merge_size": "spatial_merge_size"}
"""{field of the processor about the grid of patches: the same field of the image encoder}"""
OF_PROCESSORS = {
    **{kind: {"num_query_tokens": "num_query_tokens"} for kind in ("blip-2", "instructblip", "instructblipvideo")},
    **{kind: {"image_seq_length": "mm_tokens_per_image"} for kind in ("gemma3", "shieldgemma2")},
    "gemma3n": {
        "audio_seq_length": "audio_soft_tokens_per_image", "image_seq_length": "vision_soft_tokens_per_image",
    },
    "idefics2": {"image_seq_len": "perceiver_config.resampler_n_latents"},
    "mistral3": {"spatial_merge_size": "spatial_merge_size"},
    "perception_lm": {"pooling_ratio": "projector_pooling_ratio"},
}  # fmt: skip
"""{model type: {field of processor_config.json: field of config.json with the same number}}"""
OF_IMAGES = {
    "cohere2_vision": {"downsample_factor": "downsample_factor", "patch_size": "vision_config.patch_size"},
    "lfm2_vl": {"downsample_factor": "downsample_factor", "encoder_patch_size": "vision_config.patch_size"},
}
"""{model type: {field of the image processor: field of config.json with the same number}}"""
OF_LARGER_PATCHES = ("aya_vision",)
"""Model types in whose processor ``patch_size`` is the size of joined patches, not of the network's patches."""


def agreement_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield a note on each number in a processor's files that differs from the number in config.json."""
    config = folder.config
    kind = config.get("model_type")
    whole, images = processor_section(folder), image_section(folder)
    if isinstance(kind, str):
        yield from _differing(whole, config, OF_PROCESSORS.get(kind, {}))
        yield from _differing(images, config, OF_IMAGES.get(kind, {}))
    if isinstance(kind, str) and kind in VISION:
        grid = {field: f"{VISION[kind]}.{other}" for field, other in GRID.items()}
        yield from _differing(images, config, grid)
        yield from _differing(video_section(folder), config, grid)
    yield from _patches(whole.fields, config)


@notes_of(NoteKind.CONFIGURATION)
def _differing(section: Section, config: Mapping[str, Any], pairs: Mapping[str, str]) -> Iterator[str]:
    for field, path in pairs.items():
        number, wanted = section.fields.get(field), at_path(config, path)
        if type(number) is int and type(wanted) is int and number != wanted:
            yield f"{section.where} says {number} ({field}), but config.json says {wanted} ({path})"


@notes_of(NoteKind.CONFIGURATION)
def _patches(made: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes if a processor's ``patch_size`` is not the network's, or if ``vision_feature_layer`` does not exist.

    ``made`` has the fields of the processor, and ``config`` those of config.json.
    """
    vision = config.get("vision_config")
    part = vision if isinstance(vision, dict) else {}
    number, wanted = made.get("patch_size"), part.get("patch_size")
    is_same = config.get("model_type") not in OF_LARGER_PATCHES
    if type(number) is int and type(wanted) is int and number != wanted and is_same:
        yield f"{PROCESSOR} says {number} (patch_size), but vision_config of config.json says {wanted}"
    layers, count_of = config.get("vision_feature_layer"), part.get("num_hidden_layers")
    for layer in layers if isinstance(layers, list) else [layers]:
        if type(layer) is int and type(count_of) is int and not -count_of - 1 <= layer <= count_of:
            yield f"config.json says {layer} (vision_feature_layer), but vision_config has {count(count_of, 'layer')}"
