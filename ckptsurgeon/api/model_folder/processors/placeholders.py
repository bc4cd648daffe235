"""Notes on placeholder tokens of images and videos that the tokeniser lacks, or whose id differs in config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....util.text import escape
from ..documents import TOKENIZER
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import brief_token, object_in, text_of
from .sections import PROCESSOR, at_path, processor_section

__all__ = ["placeholder_notes"]

OF_TOKENIZERS = (
    "aria", "cohere2_vision", "gemma3", "gemma3n", "glm46v", "glm4v", "glm4v_moe", "idefics2", "janus", "lfm2_vl",
    "llava", "llava_next", "llava_next_video", "llava_onevision", "paligemma", "perception_lm", "qwen2_5_omni",
    "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
    "video_llava", "vipllava",
)  # fmt: skip
"""Model types whose processors use the placeholder in the tokeniser's files (``image_token``), if there is one."""
OF_PROCESSORS = ("llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "video_llava", "vipllava")
"""Model types whose processors use the placeholder in processor_config.json, if the tokeniser names none."""
OWN = ("PixtralProcessor",)
"""Processors that never use the tokeniser's placeholder."""
NAMES = ("image_token", "video_token")


def placeholder_notes(folder: ModelFolder, tokens: tuple[str, ...], known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (field of config.json, note) for each placeholder token whose id differs from the number in this field.

    If the tokeniser lacks the placeholder, the field is "". ``tokens`` are the tokens of the tokeniser, and ``known``
    the tokens that its files add.
    """
    for name in NAMES:
        token, where = _token(folder, name)
        if not token:
            continue
        said = f"{brief_token(token)} ({name} of {where})"
        if token not in known and token not in tokens:
            if where == TOKENIZER and name in _extra(folder):
                continue  # another note says which tokens of this list are missing
            yield "", f"the placeholder of {name.removesuffix('_token')}s is {said}, which the tokeniser lacks"
            continue
        field, number = _id(folder.config, name)
        found = tokens.index(token) if token in tokens else None
        if None not in (found, number) and number != found:
            id = f"the id of {said} is {found}"
            yield (
                field,
                f"{id}, but {escape(field)} of config.json is {number}: the model does not find the {name[:5]}s in "
                "the text",
            )


def _token(folder: ModelFolder, name: str) -> tuple[str, str]:
    """Return (placeholder token, file that names it); both are "" if no file names it, or the model type is unknown.

    ``name`` is the field that names the token, such as ``image_token``.
    """
    kind, made = folder.config.get("model_type"), processor_section(folder).fields
    is_own = kind == "mistral3" or made.get("processor_class") in OWN
    if kind in OF_TOKENIZERS and not is_own:
        token = _of_tokenizer(object_in(folder, TOKENIZER), name)
        if token:
            return token, TOKENIZER
    return (text_of(made.get(name)), PROCESSOR) if kind in OF_PROCESSORS else ("", "")


def _extra(folder: ModelFolder) -> Mapping[str, Any]:
    found = object_in(folder, TOKENIZER).get("extra_special_tokens")
    return found if isinstance(found, dict) else {}


def _of_tokenizer(fields: Mapping[str, Any], name: str) -> str:
    """Return the special token in the field ``name`` of the tokeniser's configuration; "" if there is none."""
    named = (fields, *(fields.get(one) for one in ("model_specific_special_tokens", "extra_special_tokens")))
    return next((text for one in named if isinstance(one, dict) and (text := text_of(one.get(name)))), "")


def _id(config: Mapping[str, Any], name: str) -> tuple[str, int | None]:
    """Return (field of config.json with the id of a placeholder token, this id); ("", None) if there is none."""
    for part in ("", "thinker_config."):
        for field in (f"{part}{name}_id", f"{part}{name.removesuffix('_token')}_token_index"):
            number = at_path(config, field)
            if type(number) is int:
                return field, number
    return "", None
