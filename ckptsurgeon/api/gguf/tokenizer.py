"""Makes the metadata of GGUF from a model's tokeniser: tokens, their kinds, merges, special ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import CheckpointError, ConfigError
from ...formats.base.untrusted import parse_json
from ...formats.ggml.values import ARRAY, BOOL, FLOAT32, INT32, TEXT, UINT32, Typed, array, packed
from ...util.text import count
from ...vocabulary.sentencepiece import described_pieces
from ..model_folder.documents import TOKENIZER
from ..model_folder.folder import LARGEST, ModelFolder
from .splitters import is_of_bytes, sections, splitter

__all__ = ["tokenizer_entries"]

TOKENIZER_JSON, PIECES = "tokenizer.json", "tokenizer.model"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""The numbers that sentencepiece and llama.cpp have for kinds of tokens."""
ADDED_SCORE = -1000.0
"""The score of each token that the sentencepiece model lacks."""
ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}

Tokens = dict[int, tuple[str, int]]
"""The text and the kind of each token, by its id."""


def tokenizer_entries(folder: ModelFolder, rows: int) -> tuple[dict[str, Typed], tuple[str, ...]]:
    """Return the entries of the metadata for a folder's tokeniser, and notes on missing entries.

    ``rows`` is the number of rows of the embedding: llama.cpp needs a token for each row.
    """
    names = {one.name for one in folder.files}
    try:
        if PIECES in names:
            found, notes = _of_pieces(folder, rows)
        elif TOKENIZER_JSON in names:
            found, notes = _of_pairs(folder, rows)
        else:
            return {}, ("the output has no tokeniser: the folder has no tokenizer.json and no tokenizer.model",)
    except CheckpointError as error:
        return {}, (f"the output has no tokeniser: {error.message.rstrip('.')}",)
    if folder.chat_template:
        found["tokenizer.chat_template"] = _text(folder.chat_template)
    return found, notes


def _text(value: str) -> Typed:
    return Typed(TEXT, packed(TEXT, value.encode("utf-8", "replace")))


def _texts(values: Sequence[str]) -> Typed:
    return Typed(ARRAY, array(TEXT, [value.encode("utf-8", "replace") for value in values]))


def _of_pieces(folder: ModelFolder, rows: int) -> tuple[dict[str, Typed], tuple[str, ...]]:
    """Return the entries for a sentencepiece model and the tokens that tokenizer.json adds, and notes.

    The notes are about rows of the embedding without a token. ``rows`` is the number of rows of the embedding.
    """
    pieces = described_pieces(PIECES, folder.read(PIECES, LARGEST))
    tokens: Tokens = {number: (piece.text, piece.kind) for number, piece in enumerate(pieces)}
    scores = {number: piece.score for number, piece in enumerate(pieces)}
    document = _document(folder)
    for number, token in _added(document).items():
        scores[number] = scores.get(number, ADDED_SCORE)
        tokens[number] = token
    entries = {"tokenizer.ggml.model": _text("llama"), "tokenizer.ggml.pre": _text("default")}
    number = max(rows, max(tokens, default=-1) + 1)
    entries |= _listed(tokens, number)
    values = [scores.get(place, ADDED_SCORE) for place in range(number)]
    entries["tokenizer.ggml.scores"] = Typed(ARRAY, array(FLOAT32, values))
    if str(folder.config.get("model_type")).startswith("gemma"):
        entries["tokenizer.ggml.add_space_prefix"] = Typed(BOOL, packed(BOOL, False))
    return entries | dict(_special(folder, document, tokens)), _unused(tokens, number)


def _of_pairs(folder: ModelFolder, rows: int) -> tuple[dict[str, Typed], tuple[str, ...]]:
    """Return the entries for byte-level BPE (as in GPT-2, Llama 3 and Qwen), and notes.

    The notes are about rows of the embedding without a token, and about an unknown pre-tokeniser. ``rows`` is the
    number of rows of the embedding. Raises ConfigError if tokenizer.json has no byte-level BPE.
    """
    document = _document(folder)
    model = document.get("model")
    listed, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(listed, dict) or not isinstance(merges, list) or not is_of_bytes(document):
        raise ConfigError(f"{TOKENIZER_JSON} is not a byte-level BPE tokeniser, and there is no {PIECES}")
    tokens: Tokens = {number: (text, NORMAL) for text, number in listed.items() if type(number) is int and number >= 0}
    tokens |= _added(document)
    number = max(rows, max(tokens, default=-1) + 1)
    if number > 2 * len(tokens) + rows:
        raise ConfigError(f"{TOKENIZER_JSON} has {len(tokens)} tokens, but their ids go up to {number - 1}")
    entries = {"tokenizer.ggml.model": _text("gpt2"), **_listed(tokens, number)}
    entries["tokenizer.ggml.merges"] = _texts([_merge(one) for one in merges])
    entries |= dict(_special(folder, document, tokens))
    name = splitter(document)
    if name:
        return entries | {"tokenizer.ggml.pre": _text(name)}, _unused(tokens, number)
    return entries, (
        *_unused(tokens, number),
        "ckpt does not know llama.cpp's name for the pre-tokeniser of tokenizer.json: set it with "
        "--set-metadata tokenizer.ggml.pre=NAME",
    )


def _document(folder: ModelFolder) -> Mapping[str, Any]:
    if all(one.name != TOKENIZER_JSON for one in folder.files):
        return {}
    try:
        found = parse_json(folder.read(TOKENIZER_JSON, LARGEST))
    except ValueError as error:
        raise ConfigError(f"{TOKENIZER_JSON} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _added(document: Mapping[str, Any]) -> Tokens:
    rows = document.get("added_tokens")
    return {
        row["id"]: (row["content"], CONTROL if row.get("special") is True else USER_DEFINED)
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict)
        and type(row.get("id")) is int
        and row["id"] >= 0
        and isinstance(row.get("content"), str)
    }


def _listed(tokens: Tokens, number: int) -> dict[str, Typed]:
    """Return the entries with the list of ``number`` tokens and their kinds; an id without a token gets [PAD<id>]."""
    row = [tokens.get(place) or (f"[PAD{place}]", UNUSED) for place in range(number)]
    kinds = Typed(ARRAY, array(INT32, [kind for _, kind in row]))
    return {"tokenizer.ggml.tokens": _texts([text for text, _ in row]), "tokenizer.ggml.token_type": kinds}


def _unused(tokens: Tokens, number: int) -> tuple[str, ...]:
    """Return a note on ids below ``number`` without a token, to which ``_listed`` gives names; () if there are none."""
    rows = [place for place in range(number) if not tokens.get(place)]
    if not rows:
        return ()
    if len(rows) == 1:
        return (f"1 row without a token gets the name [PAD{rows[0]}]",)
    return (f"{count(len(rows), 'row')} without a token get the names [PAD{rows[0]}] to [PAD{rows[-1]}]",)


def _merge(one: Any) -> str:
    """Return a merge rule as one string, with a space between its two parts.

    A space inside a part is replaced by Ġ, as llama.cpp expects. Raises ConfigError if the rule is not a pair of
    strings.
    """
    if isinstance(one, str):
        return one
    if not isinstance(one, list) or len(one) != 2 or not all(isinstance(part, str) for part in one):
        raise ConfigError(f"a merge of {TOKENIZER_JSON} is not a pair of strings")
    return " ".join(part.replace(" ", chr(ord(" ") + 256)) for part in one)


def _special(folder: ModelFolder, document: Mapping[str, Any], tokens: Tokens) -> Iterator[tuple[str, Typed]]:
    """Yield (entry, value) for the ids of special tokens, and for ``add_bos_token`` and ``add_eos_token``.

    These two are true if a text gets such a token at its beginning or at its end.
    """
    names = {one.name for one in folder.files}
    stated = folder.document(TOKENIZER) if TOKENIZER in names else {}
    ids = {text: number for number, (text, _) in tokens.items()}
    first = ""
    for role, entry in ROLES.items():
        text = stated.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        number = ids.get(text) if isinstance(text, str) else None
        number = _first(folder.config.get(f"{role}_token_id")) if number is None else number
        if number is not None and number in tokens:
            yield f"tokenizer.ggml.{entry}", Typed(UINT32, packed(UINT32, number))
            first = tokens[number][0] if role == "bos" else first
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(stated.get(name), bool):
            yield f"tokenizer.ggml.{name}", Typed(BOOL, packed(BOOL, stated[name]))
        elif name == "add_bos_token" and first:
            yield f"tokenizer.ggml.{name}", Typed(BOOL, packed(BOOL, _begins_with(document, first)))


def _first(stated: Any) -> int | None:
    value = stated[0] if isinstance(stated, list) and stated else stated
    return value if type(value) is int and value >= 0 else None


def _begins_with(document: Mapping[str, Any], token: str) -> bool:
    """Return whether the post-processor of tokenizer.json puts ``token`` at the beginning of each text."""
    for one in sections(document.get("post_processor")):
        single = one.get("single")
        head = single[0] if isinstance(single, list) and single else None
        special = head.get("SpecialToken") if isinstance(head, dict) else None
        if isinstance(special, dict) and special.get("id") == token:
            return True
    return False
