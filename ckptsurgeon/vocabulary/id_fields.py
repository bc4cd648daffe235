"""Recognises the fields of a configuration that have token ids, by their names. No file is opened.

The rules hold for every configuration class of transformers 5.23 (``tests/vocabulary/test_id_fields.py`` has the
reviewed list of the fields that are excluded).
"""

from __future__ import annotations

import re

__all__ = [
    "BIASED",
    "FORCED",
    "MAPS",
    "PAIRS",
    "SEQUENCES",
    "SETS",
    "is_of_ids",
    "is_of_inputs",
    "is_of_others",
    "may_be_of_ids",
]

# Fields whose values are not an id or a list of ids: pairs [position, id]; lists from which an id may be removed
# (SETS); lists of sequences of ids; pairs [sequence, bias]; lists of sequences of which the output must contain one
# (FORCED); and maps of names to ids.
PAIRS = ("forced_decoder_ids",)
SETS = ("suppress_tokens", "begin_suppress_tokens")
SEQUENCES = ("bad_words_ids",)
BIASED = ("sequence_bias",)
FORCED = ("force_words_ids",)
MAPS = {
    "lang_to_id": "{}", "task_to_id": "<|{}|>", "text_decoder_lang_to_code_id": "__{}__", "vocabulary_map": "{}",
}  # fmt: skip
"""{field: pattern} of fields that map names to ids; a token is the pattern with the name in place of ``{}``."""
_KNOWN = frozenset((*PAIRS, *SETS, *SEQUENCES, *BIASED, *FORCED, *MAPS))
_ENDS = ("_token_id", "_token_ids", "_token_index")
_ROLES = "blank|bos|cls|eos|mask|pad|sep|unk"
_MARKS = "boa|boi|bod|bov|end|eoa|eod|eoi|eot|eov|newline|patch|placeholder|sot|start"
_BY_ROLE = re.compile(rf"(?:.*_)?(?:(?:{_ROLES}|{_MARKS})_ids?|(?:{_ROLES})_(?:index|idx))")
"""Matches names that end with the role of a token, such as ``pad_index``, ``newline_id`` and ``image_start_id``."""
_OF_OTHERS = re.compile(r"(?:audio_stream|codebook|codec|subs|t2u|tag|tts_codec|vocoder)_")
"""Matches prefixes of fields whose ids belong to audio codes, speech units or HTML tags, never to text tokens."""
_OF_INPUTS = re.compile(r"(?:audio|document|frame|im|image|img|speech|text|tts|video|vision|visual)_|(?:bo|eo)[aiv]_")
"""Matches prefixes of fields whose tokens mark other inputs, such as images, in a text."""
_UNSURE = re.compile(r".*_(?:ids?|idx|index|token|tokens)|.*_to_(?:.*_)?(?:id|token)")
_OF_COUNTS = re.compile(
    r"(?:.*_)?(?:max|min|num|n|use|has)_.*|(?:.*_)?(?:active|adapter|altup|block|channel|decode|device|eval|expert|group|head|hidden|hook|"
    r"ignore|label|lang|layer|layers|merge|per|position|process|prompt|rank|sequence|speaker|stage|task)s?(?:_.*)?"
)
"""Matches the names of fields whose numbers are not token ids, but counts or indices."""


def is_of_ids(field: str) -> bool:
    """Return whether a field of a configuration has token ids, also in lists, or in maps from languages or tasks."""
    is_named_so = field.endswith(_ENDS) or field in _KNOWN
    return is_named_so or ("layer" not in field and _BY_ROLE.fullmatch(field) is not None)


def is_of_others(field: str) -> bool:
    """Return whether the ids of a field belong to audio codes, speech units or HTML tags, never to text tokens."""
    return _OF_OTHERS.match(field) is not None


def is_of_inputs(field: str) -> bool:
    """Return whether a field with ids is for tokens that mark images, videos, audio or other inputs in a text."""
    return _OF_INPUTS.match(field) is not None


def may_be_of_ids(field: str) -> bool:
    """Return whether the name ``field`` does not tell if the field has token ids: ``image_token``, ``style_id``."""
    return not is_of_ids(field) and _UNSURE.fullmatch(field) is not None and _OF_COUNTS.fullmatch(field) is None
