"""Notes on files that prepare inputs for another model: sizes of images, audio features, tokens in chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ...destinations.hf.files import PREPROCESSOR
from ...errors import ConfigError, SourceError
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import escape, listing
from ...vocabulary.renumbered_ids import ids_by_field
from ...vocabulary.renumbering import Renumbering
from .documents import CHAT, TOKENIZER
from .folder import ModelFolder
from .processors.agreement import agreement_notes
from .processors.image_tokens import image_token_notes
from .processors.placeholders import placeholder_notes
from .processors.sections import Section, image_section
from .tokenizer.chat_template import chat_notes
from .tokenizer.tokenizer_files import SPECIAL, added_tokens, brief_token, local_tokens, object_in

__all__ = ["input_notes"]

MEL_BINS = {"WhisperFeatureExtractor": "feature_size", "ASTFeatureExtractor": "num_mel_bins"}
"""{feature extractor: its field with the number of mel bins}; in config.json, this field is ``num_mel_bins``."""
OF_WAVES = (
    "data2vec-audio", "hubert", "moonshine", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2",
    "wav2vec2-conformer", "wavlm",
)  # fmt: skip
"""Model types that read waveforms."""
EXTRACTORS = {
    "ASTFeatureExtractor": ("audio-spectrogram-transformer",),
    "SeamlessM4TFeatureExtractor": ("seamless_m4t", "seamless_m4t_v2", "wav2vec2-bert"),
    "Speech2TextFeatureExtractor": ("speech_to_text",),
    "Wav2Vec2FeatureExtractor": OF_WAVES,
    "WhisperFeatureExtractor": ("whisper",),
}
"""Feature extractors for audio, each with the model types that can use its features and no others."""
OF_ONE_SIZE = ("clip", "clip_vision_model", "deit", "siglip", "siglip_vision_model", "vit")
"""Model types that refuse images of another size than ``image_size``, unless the caller asks for interpolation."""
PLACEHOLDER = re.compile(r"(image|video|audio)_token_(?:id|index)")
"""Matches fields with the id of the placeholder token for an image, a video or audio."""
ABBREVIATIONS = {"image": ("img",), "video": ("vid",), "audio": ("aud",)}
"""Other words in the names of placeholder tokens, as in ``<unk_img>`` and ``<IMG_CONTEXT>``."""


@notes_of(NoteKind.TOKEN_IDS)
def input_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on files that prepare inputs of other sizes, or with other tokens, than the model expects.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory.
    """
    made = object_in(folder, PREPROCESSOR)
    yield from _of_another_model(made, folder.config)
    yield from _mel_bins(made, folder.config)
    yield from _frames(made, folder.config)
    yield from _image_sizes(image_section(folder), folder.config)
    yield from agreement_notes(folder)
    yield from image_token_notes(folder)
    yield from _two_templates(folder)
    tokens = local_tokens(read)
    if tokens:
        added = added_tokens(folder)
        by_name = dict(_placeholders(folder, tokens, added))
        yield from by_name.values()
        yield from (note for field, note in placeholder_notes(folder, tokens, added) if field not in by_name)
    yield from chat_notes(folder, read)


@notes_of(NoteKind.CONFIGURATION)
def _of_another_model(made: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the feature extractor is for other models: it may make spectrograms instead of waveforms, say.

    ``made`` has the fields of preprocessor_config.json, the feature extractor's file.
    """
    kind, name = config.get("model_type"), made.get("feature_extractor_type")
    wanted = next((one for one, kinds in EXTRACTORS.items() if kind in kinds), "")
    if wanted and isinstance(name, str) and name in EXTRACTORS and name != wanted:
        yield f"{PREPROCESSOR} is for {name}, but a {kind} model needs {wanted}: it cannot read such inputs"


@notes_of(NoteKind.CONFIGURATION)
def _mel_bins(made: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    field = MEL_BINS.get(str(made.get("feature_extractor_type")), "")
    number, wanted = made.get(field), config.get("num_mel_bins")
    if type(number) is int and type(wanted) is int and number != wanted:
        yield f"{PREPROCESSOR} says {number} ({field}), but config.json says {wanted} (num_mel_bins)"


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _frames(made: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if Whisper's feature extractor does not make twice as many frames as the encoder has positions.

    ``made`` has the fields of preprocessor_config.json, the feature extractor's file.
    """
    seconds, positions = made.get("chunk_length", 30), config.get("max_source_positions", 1500)
    rate, hop = made.get("sampling_rate", 16000), made.get("hop_length", 160)
    if config.get("model_type") != "whisper" or made.get("feature_extractor_type") != "WhisperFeatureExtractor":
        return
    if all(type(one) is int and one > 0 for one in (seconds, positions, rate, hop)):
        frames = seconds * rate // hop
        if frames != 2 * positions:
            wanted = f"config.json says {positions} (max_source_positions), for {2 * positions} frames"
            makes = f"{PREPROCESSOR} makes {frames} frames (chunk_length {seconds})"
            yield f"{makes}, but {wanted}: transformers refuses such inputs"


@notes_of(NoteKind.CONFIGURATION)
def _image_sizes(section: Section, config: Mapping[str, Any]) -> Iterator[str]:
    nested = config.get("vision_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        wanted = part.get("image_size")
        if part.get("model_type") not in OF_ONE_SIZE or type(wanted) is not int:
            continue
        field, sides = _size(section.fields)
        if sides and any(side != wanted for side in sides):
            images = " x ".join(map(str, sides))
            yield f"{section.where} makes images of {images} ({field}), but config.json says {wanted} (image_size)"
            return


@notes_of(NoteKind.CONFIGURATION)
def _two_templates(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the chat template in tokenizer_config.json differs from the file that transformers uses."""
    other = object_in(folder, TOKENIZER).get("chat_template")
    if not isinstance(other, str) or not any(one.name == CHAT for one in folder.files):
        return
    with suppress(ConfigError, SourceError):
        if folder.chat_template.strip() != other.strip():
            yield f"{CHAT} and {TOKENIZER} have different chat templates: transformers uses {CHAT}"


def _size(made: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Return (name of the field with a processor's image size, (height, width)); () instead of an unknown size.

    ``made`` has the fields of the processor.
    """
    field = "crop_size" if "crop_size" in made and made.get("do_center_crop") is not False else "size"
    if field == "size" and made.get("do_resize") is False:
        return field, ()
    value = made.get(field)
    sides = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
    return field, tuple(side for side in sides if type(side) is int)


def _placeholders(folder: ModelFolder, tokens: tuple[str, ...], added: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (field, note) for each placeholder id that belongs to a wrong token, although a suitable token exists.

    For example, a token is suitable for ``image_token_id`` if it is a special token with "image" in its text, and no
    other field, such as ``image_start_id``, has its id. ``tokens`` are all tokens in the order of their ids, and
    ``added`` those that the tokeniser's files add.
    """
    for field, number in folder.config.items():
        match = PLACEHOLDER.fullmatch(field)
        if match is None or type(number) is not int or not 0 <= number < len(tokens):
            continue
        token, words = tokens[number].lower(), (match[1], *ABBREVIATIONS[match[1]])
        named = {one for one in added if match[1] in one.lower() and SPECIAL.fullmatch(one)}
        if named and not any(word in token for word in words):
            own = sorted(named - _of_other_fields(folder, tokens))
            if own:
                others = listing([brief_token(one) for one in own], 3, where="")
                is_of = f"in the tokeniser this is the id of {brief_token(tokens[number])}"
                yield field, f"{escape(field)} of config.json is {number}, but {is_of}, not of {others}"


def _of_other_fields(folder: ModelFolder, tokens: tuple[str, ...]) -> set[str]:
    """Return the tokens whose ids are in fields that are not for placeholders, such as ``image_start_id``."""
    found = ids_by_field(folder.config, Renumbering.of(tokens, tokens))
    ids = (one for field, some in found.items() if not PLACEHOLDER.fullmatch(field) for one in some)
    return {tokens[one] for one in ids if 0 <= one < len(tokens)}
