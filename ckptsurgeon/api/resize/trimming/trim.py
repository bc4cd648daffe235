"""Cuts the vocabulary of a model to the tokens that a corpus and the chat template use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from ....destinations.hf.files import GENERATION, tokenizer_beside
from ....destinations.hf.resizable import Resizable
from ....errors import ConfigError, PlanError
from ....planning.target import Companion
from ....storage.json_text import read_json
from ....storage.small_files import read_file
from ....util.text import escape, listing
from ....vocabulary.beside_model import vocabulary_beside
from ....vocabulary.renumbered_ids import moved_ids
from ....vocabulary.renumbering import Renumbering
from ....vocabulary.replacement import NewVocabulary
from ....vocabulary.trimmed import KeptTokens, added_in, kept_tokens, trimmed_tokenizer
from ....vocabulary.vocabulary import VOCABULARY_BYTES, vocabulary_of
from .chat_texts import chat_texts
from .corpus import check_encodes_alike, opened_tokenizer, text_batches, used_ids

__all__ = ["trimmed"]

TOKENIZER, SETTINGS, DECODER = "tokenizer.json", "tokenizer_config.json", "added_tokens_decoder"
CHAT = ("chat_template.jinja", "chat_template.json")
WITHOUT_TOKENS = ("special_tokens_map.json", *CHAT, "normalizer.json")
"""Files of a tokeniser that name tokens only by their text, so that they can be copied unchanged."""
SPACES = " \t\r\n\u2581\u0120\u010a\u0109\u010d"
"""Spaces and line ends, also as tokenisers write them: texts in any language have them."""


def trimmed(
    base: Resizable, path: str, corpora: Sequence[str], *, keeps_special: bool, largest: bool
) -> tuple[NewVocabulary, KeptTokens]:
    """Return the vocabulary that the corpora need, and the kept tokens with their number for each reason.

    ``path`` is the tokenizer.json in the folder of the weights. If ``keeps_special`` is true, all special and added
    tokens are kept; else only those that the corpora, the configuration or the tokeniser's settings use. The tokens of
    texts that the chat template writes are kept, too. ``largest`` is true if the token with the largest id must be
    kept. The corpora are read twice, to check that the smaller tokeniser encodes them into the same tokens. Raises
    ConfigError if it does not, if there is no tokenizer.json, if all tokens would be kept, or if the corpora use none;
    PlanError if the package tokenizers reads other tokens from the file.
    """
    if os.path.basename(path) != TOKENIZER:
        raise ConfigError(
            f"--trim needs a {TOKENIZER}, but the tokeniser of the model is in {escape(path)}.",
            hint="Save the tokeniser with transformers (AutoTokenizer.from_pretrained, save_pretrained), which writes "
            "this file.",
        )
    text = read_file(path, VOCABULARY_BYTES).decode("utf-8", "replace")
    vocabulary, document = vocabulary_beside(path), read_json(text)
    settings = _settings(path)
    _check_settings(settings, vocabulary.tokens)
    own = _opened(text, path, vocabulary.tokens)
    used = {vocabulary.tokens[number] for number in used_ids(own, text_batches(corpora))}
    added = added_in(document)
    if not any(token.strip(SPACES) for token in used - set(added) - {str(document["model"].get("unk_token"))}):
        raise ConfigError(
            "no token of the tokeniser, except special and added tokens and spaces, occurs in "
            f"{listing(list(corpora), where='')}.",
            hint="Give texts in the language of the model.",
        )
    prompts = _prompt_texts(path, settings)
    used |= {vocabulary.tokens[number] for number in used_ids(own, [prompts])}
    named = added if keeps_special else [one for one in added if _is_named(one, path, settings)]
    needed = [
        *named,
        *_of_ids(base, vocabulary.tokens, {*used, *named}),
        *vocabulary.tokens[len(vocabulary.tokens) - largest :],
    ]
    kept = kept_tokens(document, vocabulary.tokens, used, needed)
    if len(kept.tokens) == len(vocabulary.tokens):
        raise ConfigError(
            "the texts, the configuration and the tokeniser's files need all tokens, so there is nothing to cut.",
            hint="Give less text, or leave --trim out.",
        )
    made = json.dumps(trimmed_tokenizer(document, kept.tokens), indent=2, ensure_ascii=False) + "\n"
    smaller = _opened(made, TOKENIZER, kept.tokens)
    check_encodes_alike(own, smaller, chain([prompts], text_batches(corpora)))
    files = (Companion(TOKENIZER, text=made), *_others(path, settings, kept.tokens))
    new = vocabulary_of(TOKENIZER, made.encode())
    return NewVocabulary(vocabulary, new, (path, path), files=files), kept


def _opened(text: str, name: str, tokens: Sequence[str]) -> Any:
    """Return a tokeniser; raises PlanError if the package tokenizers reads other tokens from ``text``, or other ids.

    ``tokens`` are the tokens in ``text``, in the order of their ids.
    """
    made = opened_tokenizer(text, name)
    if made.get_vocab() != {token: number for number, token in enumerate(tokens)}:
        raise PlanError(
            f"{escape(name)}: the package tokenizers reads other tokens or ids than the file has, so --trim cannot be "
            "used.",
            hint="Save the tokeniser again with transformers (save_pretrained), or give a smaller tokeniser with "
            "--tokenizer.",
        )
    return made


def _prompt_texts(path: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the texts that the chat templates of a tokeniser write into prompts."""
    found = chat_texts(settings.get("chat_template"))
    for one in tokenizer_beside(path):
        if one.name in CHAT:
            text = read_file(one.path).decode("utf-8", "replace")
            found += chat_texts(text if one.name == CHAT[0] else _templates(text))
    return list(dict.fromkeys(found))


def _templates(text: str) -> Any:
    """Return the field ``chat_template`` of a chat_template.json; None if the file cannot be read."""
    with suppress(ValueError):
        found = read_json(text)
        return found.get("chat_template") if isinstance(found, dict) else None
    return None


def _settings(path: str) -> dict[str, Any]:
    """Return the fields of the tokenizer_config.json in the folder of a tokenizer.json; {} if there is none.

    Raises ConfigError if the file is not valid JSON.
    """
    beside = next((one for one in tokenizer_beside(path) if one.name == SETTINGS), None)
    if beside is None:
        return {}
    try:
        found = read_json(read_file(beside.path))
    except ValueError as error:
        raise ConfigError(
            f"{escape(beside.path)} is not valid JSON: {escape(str(error))}.",
            hint="Correct this file, or fetch it again.",
        ) from None
    return dict(found) if isinstance(found, dict) else {}


def _check_settings(settings: Mapping[str, Any], tokens: Sequence[str]) -> None:
    """Raise PlanError if tokenizer_config.json adds tokens that the tokenizer.json lacks."""
    known = set(tokens)
    lacking = [row.get("content") for _, row in _decoder(settings) if row.get("content") not in known]
    if lacking:
        raise PlanError(
            f"{SETTINGS} adds tokens that {TOKENIZER} does not have: {listing(list(map(str, lacking)), where='')}.",
            hint="Save the tokeniser with transformers, which writes them into both files.",
        )


def _decoder(settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = settings.get(DECODER)
    return [(key, row) for key, row in rows.items() if isinstance(row, dict)] if isinstance(rows, dict) else []


def _is_named(token: str, path: str, settings: Mapping[str, Any]) -> bool:
    """Return whether the tokeniser's settings use a token, for example in its chat template.

    ``path`` is the tokenizer.json, and ``settings`` are the fields of tokenizer_config.json. Its field
    ``added_tokens_decoder``, which lists the added tokens, is left out.
    """
    own = [value for name, value in settings.items() if name != DECODER]
    texts = [json.dumps(own, ensure_ascii=False)]
    texts += [
        read_file(one.path).decode("utf-8", "replace") for one in tokenizer_beside(path) if one.name in WITHOUT_TOKENS
    ]
    return any(token in text or json.dumps(token, ensure_ascii=False)[1:-1] in text for text in texts)


def _of_ids(base: Resizable, tokens: Sequence[str], kept: set[str]) -> Iterator[str]:
    """Yield the tokens that are not in ``kept``, but whose ids occur in config.json or generation_config.json."""
    numbers = Renumbering.of(tokens, [token for token in tokens if token in kept])
    documents = [base.fields()]
    path = os.path.join(base.folder, GENERATION)
    if os.path.isfile(path):
        found = read_json(read_file(path))
        documents += [found] if isinstance(found, dict) else []
    for fields in documents:
        yield from (one.token for one in moved_ids(fields, numbers).lost if one.token)


def _others(path: str, settings: Mapping[str, Any], tokens: Sequence[str]) -> Iterator[Companion]:
    """Yield the files of the smaller tokeniser besides its tokenizer.json."""
    yield from (one for one in tokenizer_beside(path) if one.name in WITHOUT_TOKENS)
    if settings:
        ids = {token: number for number, token in enumerate(tokens)}
        rows = {str(ids[row["content"]]): row for _, row in _decoder(settings) if row["content"] in ids}
        made = {**settings, **({DECODER: rows} if DECODER in settings else {})}
        yield Companion(SETTINGS, text=json.dumps(made, indent=2, ensure_ascii=False) + "\n")
