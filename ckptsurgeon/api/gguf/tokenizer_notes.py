"""Notes on the tokeniser in a GGUF file's metadata: lists that contradict its kind, and unusual special tokens.

llama.cpp reads these entries in its ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from ...formats.ggml.values import texts_in
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import brief_repr, count, escape
from ...vocabulary.huggingface import byte_letters, is_byte
from ...vocabulary.rule_order import rule_order
from ..model_folder.tokenizer.changed_lists import are_mixed, are_sorted, byte_order_notes, order_notes
from ..model_folder.tokenizer.token_lists import FEW, FEWEST
from ..model_folder.tokenizer.tokenizer_files import SPECIAL as SPECIAL_TOKEN

__all__ = ["Read", "tokenizer_notes"]

OWN = "tokenizer.ggml."
"""The prefix of the names of the entries that describe a tokeniser."""
MODEL, TOKENS, KINDS, MERGES, SCORES = (
    f"{OWN}{name}" for name in ("model", "tokens", "token_type", "merges", "scores")
)
NORMAL, CONTROL = 1, 3
"""llama.cpp's numbers for kinds of tokens: tokens of ordinary text, and tokens such as the end of a text."""
ROLES = ("eos_token_id", "bos_token_id", "padding_token_id", "eot_token_id", "seperator_token_id", "cls_token_id")
"""Entries with the id of a token that is not text ("seperator" is llama.cpp's spelling)."""
BEGUN = ("llama3", "llama-v3", "llama-bpe", "falcon3")
"""For these values of ``tokenizer.ggml.pre``, llama.cpp begins texts with ``bos_token_id`` by default."""
LETTERS = 256
"""The number of byte-level BPE tokens that no merge rule makes: one for each byte."""
DIGITS = 10
"""The largest number of digits of an id that is looked up."""
HEAD = 12
"""The number of bytes before the first item of an array."""
PROBE = 1 << 16
"""How many bytes of the token list are read first, to see whether the whole list may be sorted."""
SPECIAL = ("<", "[", "｜", "\u2581<")
"""How special tokens begin; some files give them the ``token_type`` of ordinary tokens."""
SPACE = "Ġ"
"""How byte-level BPE writes a space; sentencepiece writes ▁."""

Read = Callable[[str, int, int], bytes]
"""A function that returns a part of an entry's value, as bytes.

Its arguments are the name of the entry, the position of the part in the value, and the number of bytes.
"""


@notes_of(NoteKind.TOKEN_IDS)
def tokenizer_notes(metadata: Mapping[str, str], tokens: int, read: Read) -> Iterator[str]:
    """Yield notes on faults of a GGUF file's tokeniser.

    The faults are lists that do not fit each other or the tokeniser's kind (BPE, sentencepiece), and special tokens
    that are marked as ordinary tokens.

    ``metadata`` maps the names of all entries to their values as text, '' if they are too long. ``tokens`` is the
    number of tokens. ``read`` returns bytes of an entry's value (see ``Read``); a whole list is read only if the list
    may be wrong.
    """
    if not tokens:
        return
    yield from _of_lists(metadata, read)
    if metadata.get(MODEL) == "gpt2" and MERGES in metadata:
        yield from _of_rules(tokens, read, has_kinds=KINDS in metadata)
        yield from _order_of_rules(read)
    if KINDS in metadata:
        yield from _of_kinds(metadata, tokens, read)
    ends = {
        "eos_token_id": "llama.cpp ends texts there",
        "eot_token_id": "llama.cpp ends texts there",
        "padding_token_id": "programs that pad texts ignore this token",
    }
    if _begins_with_bos(metadata):
        ends["bos_token_id"] = "llama.cpp begins texts with it"
    for name, follows in ends.items():
        said = metadata.get(f"{OWN}{name}", "")
        if KINDS in metadata and said.isdecimal() and len(said) <= DIGITS and int(said) < tokens:
            text = _ordinary(int(said), read)
            if text:
                yield f"{OWN}{name} is {said}, the id of the ordinary token {escape(text, 40)}: {follows}"


def _begins_with_bos(metadata: Mapping[str, str]) -> bool:
    """Return whether llama.cpp begins texts with the token ``bos_token_id``."""
    default = metadata.get(MODEL) == "llama" or metadata.get(f"{OWN}pre") in BEGUN
    return metadata.get(f"{OWN}add_bos_token", "true" if default else "false") == "true"


@notes_of(NoteKind.METADATA_REFUSED)
def _of_lists(metadata: Mapping[str, str], read: Read) -> Iterator[str]:
    model = metadata.get(MODEL, "")
    has_merges, has_scores = MERGES in metadata, SCORES in metadata
    if model == "gpt2" and not has_merges:
        yield f"{MODEL} is gpt2 (byte-level BPE), but there are no {MERGES}: llama.cpp cannot load the file"
    if model == "llama" and not has_scores:
        why = f"there are {MERGES} and no {SCORES}" if has_merges else _letters(read)
        if why:
            follows = "llama.cpp splits texts into wrong tokens (--set-metadata tokenizer.ggml.model=gpt2 corrects it)"
            yield Note(
                NoteKind.VOCABULARY, f"{MODEL} is llama (sentencepiece), but {why}, as in byte-level BPE: {follows}"
            )


@notes_of(NoteKind.GGUF_TOKENS)
def _of_rules(tokens: int, read: Read, *, has_kinds: bool) -> Iterator[str]:
    """Yield a note if no merge rule makes many of the tokens of several characters; usually, rules make all of them.

    "Many" is a twentieth of all tokens or more. ``tokens`` is their number, and ``has_kinds`` is true if the file says
    which tokens are special; those need no rule. The lists are read only if there are so few rules that many tokens may
    have none; reading takes about 0.3 s for 100,000 tokens.
    """
    few = max(FEWEST, round(FEW * tokens))
    if tokens - LETTERS - int.from_bytes(read(MERGES, 4, 8), "little") < few:
        return
    rules, known = _texts(read, MERGES), _texts(read)
    made = set(map(_result, rules))
    texts = [one for one, kind in zip(known, _kinds(read), strict=False) if kind == NORMAL] if has_kinds else known
    unmade = sum(one not in made for one in texts if _is_longer(one))
    if unmade >= few and any(one.startswith(SPACE) and len(one) > 1 for one in known):
        has = f"{MERGES} has {count(len(rules), 'merge rule')}"
        yield f"{has}, but {unmade} tokens of several characters are made by no rule: the tokeniser never produces them"


def _order_of_rules(read: Read) -> Iterator[str]:
    """Yield a note if token ids do not follow the order of the merge rules, or byte tokens no known order.

    The whole lists are read only if the first tokens look wrong: if they are in alphabetical order, if the first merge
    rules do not make them, or if their tokens of single bytes are in no known order.
    """
    begin = list(_first_texts(read))
    first = [one for one in begin if _is_longer(one)]
    if not are_sorted(first) and not are_mixed([one for one in begin if one in byte_letters()]):
        by_rules = frozenset(map(_result, _first_texts(read, MERGES)))
        if 2 * sum(one in by_rules for one in first) >= len(first):
            return
    known, rules = _texts(read), _texts(read, MERGES)
    places = {token: row for row, token in enumerate(known)}
    results = [_result(one) for one in rules]
    ids = [places[one] for one in results if one in places]
    joined = frozenset(results)
    made = (one for one in known if one in joined)
    order = rule_order(ids)
    yield from order_notes(TOKENS, made, len(rules), order)
    yield from byte_order_notes(TOKENS, known, order)


def _result(rule: str) -> str:
    """Return the token that a merge rule makes: its two parts without the space between them."""
    return rule[:1] + rule[1:].replace(" ", "", 1)


def _is_longer(token: str) -> bool:
    return len(token) > 1 and not is_byte(token) and not SPECIAL_TOKEN.fullmatch(token)


def _first_texts(read: Read, entry: str = TOKENS) -> Iterator[str]:
    """Yield the first items of the list ``entry`` (tokens or merge rules): as many as fit in the list's first bytes."""
    raw, place = read(entry, HEAD, PROBE), 0
    while place + 8 <= len(raw):
        start = place + 8
        place = start + int.from_bytes(raw[place:start], "little")
        if place <= len(raw):
            yield raw[start:place].decode("utf-8", "replace")


@notes_of(NoteKind.GGUF_TOKENS)
def _of_kinds(metadata: Mapping[str, str], tokens: int, read: Read) -> Iterator[str]:
    """Yield a note if no token is a control token, although ``eos_token_id``, for example, is the id of ``</s>``."""
    for name in ROLES:
        said = metadata.get(f"{OWN}{name}", "")
        if not (said.isdecimal() and len(said) <= DIGITS and int(said) < tokens):
            continue
        if read(KINDS, HEAD + 4 * int(said), 4) != struct.pack("<I", NORMAL):
            continue
        if CONTROL in _kinds(read):
            return
        known = _texts(read)
        text = known[int(said)] if int(said) < len(known) else ""
        if text.startswith(SPECIAL) and len(text) > 1:
            is_role = f"{name} is {said} ({escape(brief_repr(text, 24))})"
            follows = "llama.cpp writes such tokens into texts, and reads them in prompts as ordinary text"
            yield f"{KINDS} has no control token, but {is_role}: {follows}"
            return


def _letters(read: Read) -> str:
    """Return the reason why the tokeniser must be byte-level BPE, not sentencepiece; '' if there is none.

    The reason is that more tokens begin with the space of byte-level BPE (Ġ) than with that of sentencepiece (▁).
    """
    known = _texts(read)
    number = sum(one.startswith(SPACE) for one in known)
    return f"tokens begin with {SPACE}" if number > sum(one.startswith("\u2581") for one in known) else ""


def _ordinary(id: int, read: Read) -> str:
    """Return the text of token ``id`` if it is an ordinary token, although the file has special tokens; else ''."""
    if read(KINDS, HEAD + 4 * id, 4) != struct.pack("<I", NORMAL):
        return ""
    if CONTROL not in _kinds(read):
        return ""
    known = _texts(read)
    text = known[id] if id < len(known) else ""
    return "" if text.startswith(SPECIAL) else text


def _kinds(read: Read) -> memoryview:
    kinds = read(KINDS, HEAD, 1 << 30)
    return memoryview(kinds[: len(kinds) // 4 * 4]).cast("I")


def _texts(read: Read, entry: str = TOKENS) -> list[str]:
    with suppress(struct.error):
        return texts_in(read(entry, 0, 1 << 30))
    return []
