"""Notes on tokens with different ids in two files of a tokeniser, and on merge rules that do not fit the tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

from ....errors import ConfigError, SourceError
from ....planning.target import Companion
from ....storage.read.base import File
from ....storage.read.uri import open_source, scheme_of
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, count, escape, listing
from ....vocabulary.huggingface import doubled_number, is_byte
from ....vocabulary.rule_order import rule_order
from ....vocabulary.vocabulary import GAP, TWICE, vocabulary_of
from ..documents import BYTE_PAIRS, SECOND, TOKENIZER, VOCABULARIES
from ..folder import LARGEST, ModelFolder
from ..pre_tokenizers.split_tokens import split_token_notes
from .additional_lists import missing_list_notes, other_rule_notes, shorter_list_notes
from .affixes import affix_notes
from .changed_lists import byte_order_notes, listed_order_notes, order_notes
from .decoding import decoding_notes
from .spaces import space_notes
from .spelling import spelling_of
from .text_settings import text_notes, text_setting_notes
from .tokenizer_files import SPECIAL, WHOLE, added_in, brief_token, local_tokens, object_in
from .unknown_token import chance_notes, unknown_notes

__all__ = ["merge_rule_notes", "token_list_notes"]

# Compares the merge rules of a byte-level BPE tokeniser with its token list.
#
# ``vocab.json`` lists the tokens, and ``merges.txt`` the pairs of tokens that are joined, in order. Hugging Face
# tokenizers refuses a rule whose result is not in the list. A ``tokenizer.json`` has both, and replaces the two files.

BY_PIECES = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3", "gemma3_text", "llama", "mistral", "mixtral", "phi3"), "tokenizer.model"
    ),
    **dict.fromkeys(("mt5", "t5", "umt5"), "spiece.model"),
}
"""{model type: name of its sentencepiece file}, for types whose tokens have the ids of the pieces in this file."""
MERGES, TOKENS, BOTH = "merges.txt", "vocab.json", "tokenizer.json"
SPACE, PIECE, END = "Ġ", "▁", "</w>"
"""The first character of tokens after a space (byte-level BPE, sentencepiece), and CLIP's mark of a word's end."""
FEWEST, FEW = 20, 0.05
"""The smallest number, and share, of tokens without a merge rule that get a note. Fewer may be special tokens."""


@notes_of(NoteKind.TOKENISER_FILES)
def merge_rule_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield notes if a byte-level ``vocab.json`` has no ``merges.txt``, or one for other tokens or in another order.

    There are no notes on files that would have to be downloaded or that cannot be read.
    """
    files = {file.name: file.path for file in folder.files}
    tokens = frozenset(folder.tokens or ()) if folder.vocabulary == TOKENS else frozenset[str]()
    if BOTH in files or not any(token[:1] == SPACE and token != SPACE for token in tokens):
        return
    if MERGES not in files:
        yield f"{TOKENS} is a list for byte-level BPE, and {MERGES} is missing: the tokeniser cannot be loaded"
    elif not scheme_of(files[MERGES]):
        made = _results(folder)
        yield from _unlisted(made, tokens)
        yield from _renumbered(made, folder.tokens or ())


def _renumbered(made: Sequence[str], tokens: Sequence[str]) -> Iterator[str]:
    places = {token: row for row, token in enumerate(tokens)}
    ids = [places[token] for token in made if token in places]
    joined = frozenset(made)
    ordered = (token for token in tokens if token in joined)
    order = rule_order(ids)
    yield from order_notes(TOKENS, ordered, len(made), order)
    yield from byte_order_notes(TOKENS, tokens, order)


@notes_of(NoteKind.VOCABULARY)
def _unlisted(made: Sequence[str], tokens: frozenset[str]) -> Iterator[str]:
    unlisted = [token for token in made if token not in tokens]
    if unlisted:
        examples = listing([brief_repr(token, 24) for token in unlisted], 3, where="")
        yield (
            f"{len(unlisted)} of {count(len(made), 'rule')} in {MERGES} make tokens that {TOKENS} does not list, so "
            f"the tokeniser cannot be loaded: {examples}"
        )
    longer = {token for token in tokens if len(token) > 1 and not is_byte(token)}
    unmade = sorted(longer.difference(made))
    if made and len(unmade) >= FEWEST and len(unmade) > FEW * len(longer):
        examples = listing([brief_repr(token, 24) for token in unmade], 3, where="")
        made_by = f"{len(unmade)} of {count(len(longer), 'token')} of several characters in {TOKENS}"
        yield f"no rule in {MERGES} makes {made_by}, so the tokeniser never produces them: {examples}"


@notes_of(NoteKind.VOCABULARY)
def _own_rules(folder: ModelFolder) -> Iterator[str]:
    """Yield a note on merge rules in tokenizer.json that need or make tokens that its vocabulary lacks."""
    if not folder.has_all_tokens or not local_tokens(folder) or folder.token_list is None:
        return
    if unlisted := folder.token_list.unlisted:
        examples = listing([brief_token(token) for token in dict.fromkeys(unlisted)], 3, where="")
        rules = f"{len(unlisted)} of {count(folder.token_list.rules, 'merge rule')} in {BOTH}"
        yield f"{rules} need tokens that it does not list, so the tokeniser cannot be loaded: {examples}"


@notes_of(NoteKind.VOCABULARY)
def _few_rules(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if no merge rule makes many of the longer tokens in tokenizer.json; usually, rules make all of them.

    For a byte-level vocabulary, "many" means more than a twentieth of the tokens. For a vocabulary from sentencepiece,
    it means more tokens than there are rules. Fewer than 20 get no note.
    """
    found = folder.token_list if folder.has_all_tokens and local_tokens(folder) else None
    if found is None or found.unmade < FEWEST:
        return
    marks = {one[0] for one in found.tokens if len(one) > 1}
    most = FEW * len(found.tokens) if SPACE in marks else found.rules
    if not marks.isdisjoint((SPACE, PIECE)) and found.unmade > most:
        rules = f"{BOTH} has {count(found.rules, 'merge rule')}"
        never = "the tokeniser never produces them"
        yield f"{rules}, but {found.unmade} tokens of several characters are made by no rule: {never}"


KINDS = {
    **dict.fromkeys(("Bert", "DistilBert", "Electra", "MobileBert", "Funnel", "LayoutLM"), "WordPiece"),
    **dict.fromkeys(("T5", "XLMRoberta", "Albert", "Camembert", "MBart", "BigBird", "Pegasus", "XLNet"), "Unigram"),
    **dict.fromkeys(("GPT2", "Qwen2", "Roberta", "Bart", "Whisper", "CLIP", "Longformer"), "BPE"),
}
"""{name of a transformers class, without Tokenizer or TokenizerFast: kind of tokeniser}"""


@notes_of(NoteKind.CONFIGURATION)
def _other_class(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ``tokenizer_class`` is for another kind of tokeniser than the one in tokenizer.json."""
    named = object_in(folder, TOKENIZER).get("tokenizer_class")
    kind = KINDS.get(re.sub("Tokenizer(Fast)?$", "", named)) if isinstance(named, str) else None
    found = folder.token_list if folder.has_all_tokens and local_tokens(folder) else None
    if kind is not None and found is not None and found.kind and found.kind != kind:
        yield (f"tokenizer_config.json says {escape(str(named))}, which is for {kind}, but {BOTH} is {found.kind}")


def _results(folder: ModelFolder) -> list[str]:
    """Return the token that each rule in merges.txt makes, in the order of the rules; [] if the file cannot be read."""
    try:
        lines = folder.read(MERGES, LARGEST).decode().split("\n")
    except (ConfigError, SourceError, UnicodeDecodeError):
        return []
    rules = [line.rstrip("\r").split(" ") for line in lines if not line.startswith("#version")]
    return ["".join(rule) for rule in rules if len(rule) == 2 and all(rule)]


OLDER, LINES = VOCABULARIES[1:3]
MARK, FIRST = "\ufeff".encode(), 128
"""The byte-order mark in UTF-8, and the number of bytes that are read to find it."""
READERS = {
    LINES: "transformers does",
    MERGES: "transformers does",
    "dict.txt": "fairseq and transformers do",
    "alphabet.txt": "Coqui STT does",
}
"""{text file with a token or merge rule on each line: libraries that do not skip a byte-order mark in it}"""
SHARED, AGAIN = "has two tokens with the id", "occurs twice"
"""Parts of the messages on two tokens with the same id, and on a key that occurs twice in a JSON object."""


def token_list_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on contradictions between a tokeniser's files: token lists, merge rules, steps of tokenizer.json.

    Files that would have to be downloaded, or that cannot be read, are not compared.
    """
    for older in (OLDER, LINES, *BYTE_PAIRS):
        yield from _other_tokens(folder, older)
    yield from _other_pieces(folder)
    yield from _marks(folder)
    yield from _doubles(folder)
    yield from _added_elsewhere(folder)
    yield from text_notes(folder)
    yield from merge_rule_notes(folder)
    yield from missing_list_notes(folder)
    yield from other_rule_notes(folder)
    yield from _own_rules(folder)
    yield from _few_rules(folder)
    yield from split_token_notes(folder)
    yield from listed_order_notes(folder)
    yield from _other_class(folder)
    yield from _steps(folder)


@notes_of(NoteKind.VOCABULARY)
def _other_tokens(folder: ModelFolder, older: str) -> Iterator[str]:
    named = {one.name: one.path for one in folder.files}
    if not {WHOLE, older} <= named.keys() or scheme_of(named[older]) or folder.tokens is None:
        return
    theirs: tuple[str, ...] = ()
    with suppress(ConfigError, SourceError):
        theirs = vocabulary_of(older, folder.read(older, LARGEST)).tokens
    if older == TOKENS and theirs:
        yield from shorter_list_notes(folder, len(theirs))
    pairs = list(zip(theirs, folder.tokens, strict=False))
    other = [row for row, (one, two) in enumerate(pairs) if one != two]
    if len(other) * 2 <= len(pairs):
        other = [row for row in other if _are_words(*pairs[row])]
    if other:
        row = other[0]
        one, two = (brief_token(token) for token in pairs[row])
        differ = f"have different tokens in {len(other)} of {len(pairs)} rows"
        yield f"{older} and {WHOLE} {differ}: row {row} is {one} in {older} and {two} in {WHOLE}"


def _are_words(one: str, two: str) -> bool:
    """Return whether two tokens are different words: neither is special or empty, and their NFKC forms differ."""
    one, two = (unicodedata.normalize("NFKC", token).strip() for token in (one, two))
    return one != two and bool(one and two) and not any(map(SPECIAL.fullmatch, (one, two)))


@notes_of(NoteKind.OTHER)
def _other_pieces(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the token list lacks or moves too many pieces of the sentencepiece model in the same folder.

    Tokenisers reorder and rename some pieces and add others, but they keep all words: a valid tokenizer.json lacks at
    most a tenth of the pieces. Marian's vocab.json, which is made separately from its two models, lacks at most half.
    """
    known = frozenset(folder.tokens or ()) if folder.vocabulary in (WHOLE, TOKENS) else frozenset[str]()
    known |= _of_targets(folder) if known and folder.vocabulary == TOKENS else frozenset()
    most = 10 if folder.vocabulary == WHOLE else 2
    for name, pieces in folder.pieces.items() if known else ():
        lacking = [piece for piece in pieces or () if piece not in known and not SPECIAL.fullmatch(piece)]
        if len(lacking) * most > len(pieces or ()):
            examples = listing([brief_token(piece) for piece in lacking], 3, where="")
            yield f"{len(lacking)} of {len(pieces or ())} pieces of {name} are not in {folder.vocabulary}: {examples}"
        elif BY_PIECES.get(str(folder.config.get("model_type"))) == name and folder.vocabulary == WHOLE:
            yield from _moved_pieces(folder, name, pieces or ())


@notes_of(NoteKind.TOKEN_IDS)
def _moved_pieces(folder: ModelFolder, name: str, pieces: Sequence[str]) -> Iterator[str]:
    """Yield a note if most pieces of a sentencepiece model have another id in tokenizer.json."""
    places = {token: row for row, token in enumerate(folder.tokens or ())}
    words = [(piece, row) for row, piece in enumerate(pieces) if piece in places and not SPECIAL.fullmatch(piece)]
    moved = [(piece, row) for piece, row in words if places[piece] != row]
    if len(moved) * 2 > len(words):
        piece, row = moved[0]
        differ = f"have different ids for {len(moved)} of {len(words)} pieces"
        yield f"{name} and {WHOLE} {differ}: {brief_token(piece)} is {row} in {name} and {places[piece]} in {WHOLE}"


def _of_targets(folder: ModelFolder) -> frozenset[str]:
    """Return the tokens of a second local token list (for the target language, say); empty if there is none."""
    for one in folder.files:
        if one.name in SECOND and not scheme_of(one.path):
            with suppress(ConfigError, SourceError):
                return frozenset(vocabulary_of(one.name, folder.read(one.name, LARGEST)).tokens)
    return frozenset()


@notes_of(NoteKind.BYTE_ORDER_MARK)
def _marks(folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each list in a text file that begins with a byte-order mark that its library does not skip.

    If there is a tokenizer.json, these lists are not used. Only the first bytes of a list are read. A merges.txt is
    read only if the token list has the marks of byte-level BPE or of CLIP.
    """
    files = {one.name: one for one in folder.files if one.name != MERGES or _are_merged(folder)}
    for name, reader in READERS.items() if WHOLE not in files else ():
        if name in files and (start := _start(files[name])).startswith(MARK):
            first = "".join(start[len(MARK) :].decode(errors="replace").splitlines()[:1])
            skips = f"{name} begins with a byte-order mark, which {reader} not skip"
            yield f"{skips}: its first line is not read as {brief_token(first)}"


def _are_merged(folder: ModelFolder) -> bool:
    """Return whether the tokens of a vocab.json have marks which show that merge rules make them."""
    tokens = folder.tokens or () if folder.vocabulary == TOKENS else ()
    return any(token.startswith(SPACE) or token.endswith(END) for token in tokens)


def _start(one: Companion) -> bytes:
    """Return the first bytes of a local file, without recording its fingerprint; b"" if it is remote or unreadable."""
    if one.text:
        return one.text[:FIRST].encode()
    with suppress(OSError, SourceError):  # an unreadable file is reported when it is copied
        if not scheme_of(one.path) and isinstance(source := open_source(one.path), File):
            with closing(source):
                return source.read(0, min(FIRST, source.size))
    return b""


def _doubles(folder: ModelFolder) -> Iterator[Note]:
    """Yield a note if a vocab.txt or vocab.json has a token twice, or two tokens with the same id."""
    if folder.vocabulary not in (LINES, OLDER) or scheme_of(_path(folder, folder.vocabulary)):
        return
    why = folder.unread_tokens.rstrip(".").replace(" is not valid JSON: key ", ": token ")
    if TWICE in why or AGAIN in why:
        kind = NoteKind.UNREADABLE_FILE if folder.vocabulary == OLDER else NoteKind.SHARED_ROW
        yield Note(kind, f"{why}: transformers uses only the last id of such a token")
    elif SHARED in why:
        yield Note(NoteKind.SHARED_ROW, f"{why}: they share one embedding row")


@notes_of(NoteKind.TOKEN_IDS)
def _added_elsewhere(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if two tokens have the same id in tokenizer.json: transformers gives the added token a new id."""
    if not folder.has_all_tokens or scheme_of(_path(folder, WHOLE)):
        return
    tokens = folder.tokens or ()
    found = [(token, row) for token, row in added_in(folder, WHOLE) if 0 <= row < len(tokens) and tokens[row] != token]
    for token, row in found[:1]:
        both = f"{brief_token(tokens[row])} and {brief_token(token)}"
        yield f"{WHOLE} has two tokens with the id {row}: {both}"
    if not tokens and (twice := doubled_number(folder.read(WHOLE, LARGEST))):
        yield f"{WHOLE} {twice}"
    elif not tokens and (TWICE in folder.unread_tokens or GAP in folder.unread_tokens):
        yield Note(
            NoteKind.VOCABULARY,
            f"{folder.unread_tokens.rstrip('.')}; the list is not compared with the weights or with other lists",
        )


def _path(folder: ModelFolder, name: str) -> str:
    return next(one.path for one in folder.files if one.name == name)


def _steps(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on steps of a tokenizer.json, such as its normaliser, that contradict its tokens or other steps."""
    spelling = spelling_of(folder)
    if spelling.tokens:
        yield from space_notes(folder, spelling)
        yield from unknown_notes(folder, spelling)
        yield from chance_notes(folder, spelling)
        yield from affix_notes(folder, spelling)
        yield from decoding_notes(folder, spelling)
        yield from text_setting_notes(folder, spelling)
