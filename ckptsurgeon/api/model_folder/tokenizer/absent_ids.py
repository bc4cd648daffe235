"""Notes on ids of special tokens that have a row in the embedding, but no token in the tokeniser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from ..documents import BYTE_PAIRS, GENERATION, TOKENIZER
from ..folder import ModelFolder
from .roles import OF_GENERATION, generates
from .special_ids import ids_of_roles
from .special_names import NewId, new_ids
from .tokenizer_files import ADDED, NAMES, WHOLE, added_in, brief_token, is_ctc, local_tokens, named_tokens, object_in

__all__ = ["absent_id_notes"]

END = "eos_token"
INPUTS = ("image", "video", "audio", "vision")
"""Prefixes of the names of fields with the ids of placeholder tokens, such as ``image_token_id``."""


@notes_of(NoteKind.TOKEN_IDS)
def absent_id_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on ids of special tokens in configurations that have an embedding row, but no token.

    An embedding often has more rows than there are tokens, for speed or for tokens that are added later. There are also
    notes on special tokens that the vocabulary lacks, if transformers gives them a new id that has a row. A tokeniser
    with custom code gets no notes, because it may have further tokens. ``read`` is the folder from which the vocabulary
    is read: ``folder`` itself, or a folder with the same tokeniser whose vocabulary is already in memory.
    """
    tokens = local_tokens(read) if folder.config else ()
    if not tokens or folder.rows < len(tokens) or not _is_whole(folder, read):
        return
    new, names = new_ids(folder, tokens), named_tokens(folder)
    places = {**{token: row for row, token in enumerate(tokens)}, **{token: one.number for token, one in new.items()}}
    own = {name: places[token] for name, token in names.items() if token in places}
    listed = {
        number for file in (ADDED, TOKENIZER, WHOLE) if _has(folder, file) for _, number in added_in(folder, file)
    }
    known = listed | {one.number for one in new.values()}

    def absent(ids: Iterable[int]) -> list[int]:
        return [one for one in ids if len(tokens) <= one < folder.rows and one not in known]

    found = [
        f"{name}_id of {file} {'is' if len(ids) == 1 else 'has'} {listing(list(map(str, rows)), 3, where='')}"
        f"{_meant(name, names, own)}"
        for name, file, ids in ids_of_roles(folder)
        if (rows := absent(ids)) and _is_checked(folder, name, own)
    ]
    found += [f"{field} of {CONFIG} is {row}" for field, row in _of_inputs(folder) if absent([row])]
    if found:
        has = f"{escape(folder.vocabulary)} has {count(len(tokens), 'token')}"
        yield f"these ids of special tokens belong to no token ({has}): {listing(found, 4, where='')}"
    yield from _renamed(folder, tokens, names, new)


def _of_inputs(folder: ModelFolder) -> Iterator[tuple[str, int]]:
    """Yield (field, id) for each placeholder token (of an image, a video or audio) in config.json."""
    for field, value in folder.config.items():
        if field.startswith(INPUTS) and field.endswith(("_token_id", "_token_index")) and type(value) is int:
            yield field, value


def _is_whole(folder: ModelFolder, read: ModelFolder) -> bool:
    is_known = read.token_list is not None and read.token_list.is_whole
    return is_known and folder.vocabulary not in BYTE_PAIRS and not object_in(folder, TOKENIZER).get("auto_map")


def _has(folder: ModelFolder, name: str) -> bool:
    return any(one.name == name for one in folder.files)


def _is_checked(folder: ModelFolder, name: str, own: Mapping[str, int]) -> bool:
    """Return whether the id of the special token with the role ``name`` is checked.

    The ids of the end token and of the decoder's start token are always checked. Other ids are checked only if ``own``,
    which has the ids of the tokeniser's special tokens, has this role. The reason is that some models (BLIP) have rows
    for padding or for a beginning token that their tokenisers do not have. For an encoder, ids that only generation
    uses are not checked.
    """
    return (name in own or name == END or name not in NAMES) and (generates(folder) or name not in OF_GENERATION)


def _meant(name: str, names: Mapping[str, str], own: Mapping[str, int]) -> str:
    return f", while {name} is {brief_token(names[name])} ({own[name]})" if name in own else ""


@notes_of(NoteKind.TOKEN_IDS)
def _renamed(
    folder: ModelFolder, tokens: tuple[str, ...], names: Mapping[str, str], new: Mapping[str, NewId]
) -> Iterator[str]:
    """Yield a note if a token is not in the vocabulary, and transformers gives it another id than a configuration has.

    transformers gives such a token a new id, whose row was not trained for this token. If there is no such row, other
    notes report this. ``tokens`` has the tokens of the vocabulary, ``names`` the special tokens by role, and ``new``
    the new ids by token.
    """
    meant = {**dict(enumerate(tokens)), **{one.number: token for token, one in new.items()}} if new else {}
    for name, token in names.items():
        if token not in new or new[token].number >= folder.rows or (is_ctc(folder) and name != "pad_token"):
            continue
        for file in (CONFIG, GENERATION):
            value = object_in(folder, file).get(f"{name}_id")
            ids = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
            if ids and new[token].number not in ids and ids[0] in meant:
                lacks = f"{brief_token(token)}, which {escape(folder.vocabulary)} lacks"
                said = f"{name}_id of {file} is {ids[0]} ({brief_token(meant[ids[0]])})"
                gets = f"transformers gives it the id {new[token].number}, while {said}"
                yield f"{new[token].file} has the {name} {lacks}: {gets}"
                break
