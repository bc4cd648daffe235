"""Notes on languages of translation and speech models, if two files of a folder contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, escape
from ..documents import GENERATION, TOKENIZER
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import added_tokens, brief_token, object_in

__all__ = ["WHISPER", "language_notes"]

TRANSLATING = ("m2m_100", "mbart", "nllb-moe", "seamless_m4t", "seamless_m4t_v2")
"""Model types that begin a translation with the token of its language."""
LANGUAGE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__[a-z]{2,3}(?:_[A-Z][a-z]{3})?__")
"""Matches the tokens of languages: ``ro_RO`` of mBART, ``ron_Latn`` of NLLB, ``__ro__`` of M2M100 and SeamlessM4T."""
FEWEST = 3
"""A missing language token gets a note only if the list has this many others: one match may be a piece of a word."""
BEGINS = ("forced_bos_token_id", "decoder_start_token_id")
"""Fields with the id of the token with which a translation begins."""
WHISPER = (
    "en english zh chinese de german es spanish ru russian ko korean fr french ja japanese pt portuguese tr turkish "
    "pl polish ca catalan nl dutch ar arabic sv swedish it italian id indonesian hi hindi fi finnish vi vietnamese "
    "he hebrew uk ukrainian el greek ms malay cs czech ro romanian da danish hu hungarian ta tamil no norwegian "
    "th thai ur urdu hr croatian bg bulgarian lt lithuanian la latin mi maori ml malayalam cy welsh sk slovak "
    "te telugu fa persian lv latvian bn bengali sr serbian az azerbaijani sl slovenian kn kannada et estonian "
    "mk macedonian br breton eu basque is icelandic hy armenian ne nepali mn mongolian bs bosnian kk kazakh "
    "sq albanian sw swahili gl galician mr marathi pa punjabi si sinhala km khmer sn shona yo yoruba so somali "
    "af afrikaans oc occitan ka georgian be belarusian tg tajik sd sindhi gu gujarati am amharic yi yiddish lo lao "
    "uz uzbek fo faroese ht haitian_creole ps pashto tk turkmen nn nynorsk mt maltese sa sanskrit lb luxembourgish "
    "my myanmar bo tibetan tl tagalog mg malagasy as assamese tt tatar haw hawaiian ln lingala ha hausa ba bashkir "
    "jw javanese su sundanese yue cantonese"
)
"""The code and the name of each language of Whisper, alternately."""


def language_notes(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[Note]:
    """Yield notes on languages that differ between two files, or for which the tokeniser has no token.

    ``places`` maps each token to its id.
    """
    kind = folder.config.get("model_type")
    if kind in TRANSLATING:
        yield from _other_target(folder, places)
        yield from _without_token(folder, places)
    elif kind == "whisper":
        yield from _other_speech(folder, places)


@notes_of(NoteKind.TOKEN_IDS)
def _other_target(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if translations begin with the token of another language than ``tgt_lang`` of the tokeniser.

    The first token is the one that generation_config.json or config.json forces.
    """
    target = _token_of(object_in(folder, TOKENIZER).get("tgt_lang"), places)
    tokens = {row: token for token, row in places.items()} if target else {}
    for field in BEGINS if target else ():
        said = {file: object_in(folder, file).get(field) for file in (GENERATION, CONFIG)}
        file = next((file for file, value in said.items() if value is not None), "")
        number = said.get(file)
        token = tokens.get(number, "") if type(number) is int else ""
        if token == target:
            return
        if LANGUAGE.fullmatch(token):
            is_token = f"{field} of {file} is {number} ({brief_token(token)})"
            yield f"{is_token}, while tgt_lang of {TOKENIZER} is {brief_token(target)} ({places[target]})"
            return


@notes_of(NoteKind.VOCABULARY)
def _without_token(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``src_lang`` or ``tgt_lang`` of the tokeniser has no token, although other languages have one.

    transformers then begins texts with the unknown token.
    """
    fields = object_in(folder, TOKENIZER)
    said = {name: fields.get(name) for name in ("src_lang", "tgt_lang")}
    lacking = {name: text for name, text in said.items() if isinstance(text, str) and text and _lacks(text, places)}
    known = [token for token in places if LANGUAGE.fullmatch(token)] if lacking else []
    added = added_tokens(folder) if known else set()
    for name, text in lacking.items() if len(known) >= FEWEST else ():
        if text not in added and f"__{text}__" not in added:
            has = (
                f"{escape(folder.vocabulary)} has no such token: its language tokens look like {brief_token(known[0])}"
            )
            yield f"{name} of {TOKENIZER} is {brief_token(text)}, but {has}"


def _lacks(text: str, places: Mapping[str, int]) -> bool:
    return not _token_of(text, places)


def _token_of(language: Any, places: Mapping[str, int]) -> str:
    """Return the token of a language, which M2M100 and SeamlessM4T put between underscores; "" if there is none."""
    names = (language, f"__{language}__") if isinstance(language, str) else ()
    return next((one for one in names if one in places), "")


@notes_of(NoteKind.TOKEN_IDS)
def _other_speech(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[str]:
    """Yield notes if Whisper's settings name two different languages, or a language that generation refuses."""
    fields, settings = object_in(folder, GENERATION), object_in(folder, TOKENIZER)
    language, languages = _code(fields.get("language")), fields.get("lang_to_id")
    if not language or not isinstance(languages, dict):
        return
    said = f"language of {GENERATION} is {escape(brief_repr(str(fields['language']), 24))}"
    own = languages.get(f"<|{language}|>")
    if own is None:
        yield f"{said}, but lang_to_id of this file has no id for it: generation fails"
        return
    forced = fields.get("forced_decoder_ids")
    names = {row: token for token, row in languages.items() if type(row) is int}
    pairs = [one for one in forced if isinstance(one, list) and len(one) == 2] if isinstance(forced, list) else []
    other = [row for _, row in pairs if type(row) is int and row in names and row != own]
    if other:
        forces = f"forced_decoder_ids of {GENERATION} has {other[0]} ({brief_token(names[other[0]])})"
        yield f"{forces}, while {said} ({own})"
    told = _code(settings.get("language"))
    if told and told != language and f"<|{told}|>" in places:
        yield Note(
            NoteKind.CONFIGURATION,
            f"{said}, but {TOKENIZER} says {escape(brief_repr(str(settings['language']), 24))} (language)",
        )


def _code(language: Any) -> str:
    """Return the code of a language of Whisper; "" if it is unknown. ``language`` may be a token, a name or a code."""
    words = WHISPER.split()
    codes = dict(zip((word.replace("_", " ") for word in words[1::2]), words[::2], strict=True))
    text = language.lower().removeprefix("<|").removesuffix("|>") if isinstance(language, str) else ""
    return text if text in codes.values() else codes.get(text, "")
