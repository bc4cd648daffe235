"""Notes on processors that write another number of tokens for an image than the network computes features for it.

transformers then refuses the image: "Image features and image tokens do not match".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, count, escape
from ..folder import ModelFolder
from .sections import PROCESSOR, Section, at_path, image_section, processor_section

__all__ = ["image_token_notes"]

STRATEGY, ADDITIONAL = "vision_feature_select_strategy", "num_additional_image_tokens"
DEFAULT, FULL = "default", "full"
"""Values of ``vision_feature_select_strategy``: with ``default``, an image has one feature and one token fewer."""
STRATEGIES = {
    "llava": DEFAULT, "llava_next": DEFAULT, "llava_next_video": DEFAULT, "llava_onevision": FULL,
    "video_llava": DEFAULT, "vipllava": DEFAULT,
}  # fmt: skip
"""{model type: strategy that a network uses if its config.json has none}"""
ADDED = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""{model type of an image encoder: number of features that belong to no patch}; CLIP has one for the whole image."""
OF_VIDEO_LLAVA = {STRATEGY: DEFAULT, ADDITIONAL: 1}
"""The defaults of Video-LLaVA's processor. By default, the other processors have no strategy and add no tokens."""
COUNTED = {
    "idefics3": ("image_seq_len", "scale_factor"),
    "internvl": ("image_seq_length", "downsample_ratio"),
    "janus": ("num_image_tokens", ""),
    "smolvlm": ("image_seq_len", "scale_factor"),
}
"""{model type: (field with the number of tokens for an image, field with the factor by which patches are joined)}"""

LARGEST = 1_000_000
"""Sizes and numbers of tokens above this get no note."""


def image_token_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes if a processor makes more or fewer tokens for an image than the network makes features."""
    config, whole = folder.config, processor_section(folder)
    kind = config.get("model_type")
    if kind == "llava_onevision":
        yield from _onevision(whole, config)
    elif kind in STRATEGIES:
        yield from _with_strategy(whole.fields, config)
    elif kind in COUNTED:
        field, factor = COUNTED[kind]
        yield from _counted(whole, field, config, factor)
    elif kind == "paligemma":
        yield from _counted(image_section(folder), "image_seq_length", config, "")


@notes_of(NoteKind.CONFIGURATION)
def _with_strategy(fields: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if LLaVA's processor, with these ``fields``, makes more or fewer tokens than there are features."""
    kind = config["model_type"]
    made = {**OF_VIDEO_LLAVA, **fields} if fields and kind == "video_llava" else fields
    own = None if kind == "vipllava" else config.get(STRATEGY)  # VipLLaVA ignores this field
    tower, given = at_path(config, "vision_config.model_type"), own or STRATEGIES[kind]
    used, more = made.get(STRATEGY), made.get(ADDITIONAL, 0)
    if tower not in ADDED or given not in (DEFAULT, FULL) or used is None or type(more) is not int:
        return
    extra = more - (used == DEFAULT) - (ADDED[tower] - (given == DEFAULT))
    if not extra:
        return
    told = (
        f"transformers gives an image {count(abs(extra), 'token')} {'more' if extra > 0 else 'fewer'} than the "
        "model has"
    )
    if used != given:
        value = escape(brief_repr(used, 24) if not isinstance(used, str) else used[:24])
        source = "config.json says" if own else f"{kind} models use"
        yield f"{_says(STRATEGY, value, fields)}, but {source} {given}: {told} features"
    else:
        adds = f"{tower} adds {count(ADDED[tower], 'feature')} to those of the patches"
        yield f"{_says(ADDITIONAL, more, fields)}, but {adds}: {told} features"


def _says(field: str, value: object, fields: Mapping[str, Any]) -> str:
    if field in fields:
        return f"{PROCESSOR} says {value} ({field})"
    return f"{PROCESSOR} has no {field}, which makes it {value}"


@notes_of(NoteKind.CONFIGURATION)
def _onevision(whole: Section, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes if LLaVA-OneVision's processor has another strategy or number of tokens than the network.

    ``whole`` has the fields of processor_config.json.
    """
    used, given = whole.fields.get(STRATEGY), config.get(STRATEGY, FULL)
    if at_path(config, "vision_config.model_type") != "siglip_vision_model" or given not in (DEFAULT, FULL):
        return
    if used in (DEFAULT, FULL) and used != given:
        yield f"{PROCESSOR} says {used} ({STRATEGY}), but config.json says {given}: images get a wrong number of tokens"
    yield from _counted(whole, "num_image_tokens", config, "")


@notes_of(NoteKind.CONFIGURATION)
def _counted(section: Section, field: str, config: Mapping[str, Any], factor: str) -> Iterator[str]:
    """Yield a note if a processor's number of tokens for an image differs from the number of the network's features.

    ``field`` is the field of ``section`` with the number of tokens. ``factor`` is the field of config.json that says
    how many patches, along each side, are joined to one feature (or its inverse); '' if none are joined.
    """
    number, side, patch = section.fields.get(field), *(_side(config, name) for name in ("image_size", "patch_size"))
    joined = config.get(factor) if factor else 1
    if type(number) is not int or not isinstance(joined, int | float) or not side or not patch:
        return
    if not 0 < joined < LARGEST or abs(number) > LARGEST:
        return
    each = joined if joined >= 1 else 1 / joined
    wanted = (side // patch / each) ** 2
    if abs(number - wanted) >= 1:
        by = f", {factor} {brief_repr(joined, 24)}" if factor else ""
        yield (
            f"{section.where} says {number} ({field}), but an image has {round(wanted)} features (image_size {side}, "
            f"patch_size {patch}{by})"
        )


def _side(config: Mapping[str, Any], name: str) -> int:
    """Return a size of the image encoder, a positive integer or a list of equal ones; 0 for any other value."""
    value = at_path(config, f"vision_config.{name}")
    sides = value if isinstance(value, list) else [value]
    return sides[0] if sides and all(type(one) is int and LARGEST > one == sides[0] > 0 for one in sides) else 0
