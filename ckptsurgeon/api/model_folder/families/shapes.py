"""Notes on tensors of well-known model types whose shape is not the one that config.json implies, or is transposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape, shape_text
from ..config import has_parts
from ..weights.required_parts import pattern_of
from ..weights.shape_checks import BY_LAYER, UNLOADED, DescribedTensor, is_number
from .decoder_rules import FALCON, GPT2, LLAMA, NEOX, OPT, PHI3
from .encoder_rules import ALBERT, BERT, DISTILBERT, ELECTRA, EMBEDDED
from .fields import Fields, Rule, Shape, UnknownError, rules
from .image_rules import CLIP, LLAVA, SIGLIP, VIT, images
from .two_sided_rules import BART, SOUND, T5, WHISPER

__all__ = ["LLAMA_TYPES", "family_shape_notes", "is_of_family"]

LLAMA_TYPES = (
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe",
)  # fmt: skip
_FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(LLAMA_TYPES, LLAMA),
    "phi3": (*(one for one in LLAMA if "proj" not in one.pattern), *PHI3),
    "gpt2": GPT2,
    **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), (*EMBEDDED, *BERT)),
    "electra": (*BERT, *ELECTRA),
    "opt": OPT,
    "gpt_neox": NEOX,
    "falcon": FALCON,
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    **dict.fromkeys(("mt5", "t5", "umt5"), T5),
    **dict.fromkeys(("bart", "marian", "mbart", "pegasus"), BART),
    "whisper": WHISPER,
    **dict.fromkeys(("hubert", "wav2vec2", "wavlm"), SOUND),
    "clip": CLIP,
    "siglip": SIGLIP,
    "clip_vision_model": rules(images("vision_model.", "", 1)),
    "siglip_vision_model": rules(images("vision_model.", "", 0)),
    "vit": VIT,
    "llava": LLAVA,
}
# Falcon sets multi_query, and there are no rules for its layers
_BY_LAYER = tuple(one for one in BY_LAYER if one != "multi_query")
_WITH_PARTS = ("clip", "llava", "siglip")


def is_of_family(kind: str) -> bool:
    """Return whether there are shape rules for a model type."""
    return kind in _FAMILIES


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def family_shape_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on the first tensor whose shape is not the one that follows from the model type and configuration.

    There is no note if the configuration refers to custom code (``auto_map``) or has sizes for each layer. Quantised
    tensors are not compared, and neither are tensors in numbered modules that no rule mentions.
    """
    known = _FAMILIES.get(str(config.get("model_type")), ())
    if has_parts(config) and config.get("model_type") not in _WITH_PARTS:
        return
    # only models with custom code have this field
    if "embedding_size" in config and config.get("model_type") in LLAMA_TYPES:
        return
    if not known or config.get("auto_map") or any(name in config for name in _BY_LAYER):
        return
    by_end: dict[str, list[Rule]] = {}
    for rule in known:
        by_end.setdefault(_end(rule.pattern), []).append(rule)
    for one in tensors:
        for rule in by_end.get(_end(one.key), ()) if not one.is_quantised else ():
            found = pattern_of(one.key)
            if not f".{found}".endswith(f".{rule.pattern}") or "#" in found.removesuffix(rule.pattern):
                continue
            note = _other_shape(one, rule, config) if is_number(one) else ""
            if note:
                yield note
                return


def _end(key: str) -> str:
    """Return the last two segments of a tensor's name, leaving out numbers and ``#``."""
    return ".".join(part for part in key.split(".")[-2:] if not part.isdecimal() and part != "#")


def _other_shape(one: DescribedTensor, rule: Rule, config: Mapping[str, Any]) -> str:
    numbers = [int(part) for part in one.key.split(".") if part.isdecimal() and len(part) < 10]
    fields = Fields(config)
    try:
        wanted = rule.shape(fields, numbers[-1] if numbers else 0)
    except UnknownError:
        return ""
    if _fits(wanted, one.shape):
        return ""
    back = len(wanted) == 2 and _fits(wanted, one.shape[::-1])
    size = f"({', '.join('any' if size is None else str(size) for size in wanted)})"
    said = f", {'perhaps ' if None in wanted else ''}transposed" if back else ""
    is_ = f"{escape(one.key)} is {shape_text(one.shape)}{said}"
    return f"config.json says {size} ({', '.join(fields.names)}), but {is_}: {UNLOADED}"


def _fits(wanted: Shape, shape: Sequence[int]) -> bool:
    return len(wanted) == len(shape) and all(a in (None, b) for a, b in zip(wanted, shape, strict=True))
