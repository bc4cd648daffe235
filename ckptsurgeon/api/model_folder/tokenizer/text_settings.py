"""Notes on settings in tokenizer.json for whole texts: special tokens around them, largest length, and padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, escape, listing
from ..documents import TOKENIZER
from ..folder import ModelFolder
from .spelling import Spelling, steps_in
from .tokenizer_files import WHOLE, brief_token, local_tokens, named_tokens, object_in

__all__ = ["OF_ENCODERS", "text_notes", "text_setting_notes"]

OF_ENCODERS = frozenset((
    "albert", "bert", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "funnel", "layoutlm", "longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer",
    "rembert", "roberta", "roformer", "splinter", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
))  # fmt: skip
"""Model types that were trained with a token before each text and one after it."""
ROLES = (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
PAIRS = (("cls_token", "sep_token"), ("bos_token", "eos_token"))
ENDS = {"</s>": "<s>", "[SEP]": "[CLS]"}
"""{token that ends a text: token that begins the text}

The exception is OPT, which begins a text with ``</s>``.
"""


@notes_of(NoteKind.CONFIGURATION)
def text_setting_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if the tokeniser of a model like BERT has tokens for both ends of a text, but does not add them."""
    head, said = folder.tokenizer_head, object_in(folder, TOKENIZER)
    kind = folder.config.get("model_type")
    if kind not in OF_ENCODERS or said.get("auto_map") or "post_processor" not in head:
        return
    names = named_tokens(folder)
    ends = [token for role, usual in ROLES if (token := names.get(role, usual)) in spelling.tokens]
    if len(ends) == len(ROLES) and _is_bare(head["post_processor"]):
        both = " and ".join(map(brief_token, ends))
        yield f"{WHOLE} does not add {both} to a text (post_processor), but {escape(str(kind))} models expect them"


def _is_bare(processor: Any) -> bool:
    """Return whether a post-processor adds no tokens: it is null, or a template with nothing but the text.

    transformers writes such a template if there is no post-processor.
    """
    steps = list(steps_in(processor))
    return all(one.get("type") == "TemplateProcessing" and not one.get("special_tokens") for one in steps)


def text_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes if special tokens around texts, padding or the largest length contradict the tokens or the model."""
    yield from _unusable(folder)
    yield from _around_texts(folder)
    yield from _exchanged(folder)
    yield from _padding(folder)
    yield from _cut(folder)


PROCESSORS = ("TemplateProcessing", "Sequence", "ByteLevel", "RobertaProcessing", "BertProcessing")
"""The types of post-processors in version 0.23 of the package tokenizers."""


@notes_of(NoteKind.OTHER)
def _unusable(folder: ModelFolder) -> Iterator[str]:
    """Yield notes on post-processors that the package tokenizers cannot load, or whose tokens have no ids."""
    for one in steps_in(folder.tokenizer_head.get("post_processor")):
        if (kind := one.get("type")) not in PROCESSORS:
            named = escape(brief_repr(kind, 40))
            yield f"{WHOLE} has a post_processor of the type {named}, which the package tokenizers does not load"
        special = one.get("special_tokens")
        if kind == "TemplateProcessing" and isinstance(special, dict):
            lost = [name for name in _used_in(one, ("single", "pair")) if not special.get(name)]
            if lost:
                names = listing([brief_token(name) for name in lost], 3, where="")
                lacks = "but its special_tokens have no such entry: encoding fails"
                yield f"the post_processor of {WHOLE} adds {names}, {lacks}"


@notes_of(NoteKind.TOKEN_IDS)
def _around_texts(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the post-processor in tokenizer.json adds a special token with an id that is not its own."""
    places = {token: row for row, token in enumerate(local_tokens(folder) if folder.has_all_tokens else ())}
    found = [one for one in _put(folder.tokenizer_head.get("post_processor")) if places.get(one[0], one[1]) != one[1]]
    if found and places:
        said = [f"{brief_token(token)} as {row} instead of {places[token]}" for token, row in dict.fromkeys(found)]
        others = listing(said, 3, where="")
        yield f"the post_processor of {WHOLE} adds tokens with wrong ids to a text: {others}"


@notes_of(NoteKind.VOCABULARY)
def _exchanged(folder: ModelFolder) -> Iterator[str]:
    """Yield notes on files in which the tokens that begin and end a text (``<s>`` and ``</s>``) are exchanged."""
    names = named_tokens(folder)
    for first, last in PAIRS:
        if ENDS.get(names.get(first, "")) == names.get(last, ""):
            named = f"{first} is {brief_token(names[first])} and {last} is {brief_token(names[last])}"
            yield f"{named} in the files of the tokeniser: the two tokens are perhaps exchanged"
    tokens = list(_put(folder.tokenizer_head.get("post_processor"), in_order=True))
    if len(tokens) == len(PAIRS[0]) and ENDS.get(tokens[0][0]) == tokens[1][0]:
        begins = f"begins texts with {brief_token(tokens[0][0])} and ends them with {brief_token(tokens[1][0])}"
        yield f"{WHOLE} {begins} (post_processor): the two tokens are perhaps exchanged"


@notes_of(NoteKind.TOKENISER_SECTION)
def _padding(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the padding in tokenizer.json has an id that is not the id of its padding token.

    The library tokenizers pads with this id; transformers pads with the pad_token of tokenizer_config.json instead.
    """
    said = folder.tokenizer_head.get("padding")
    tokens = (local_tokens(folder) if folder.has_all_tokens else None) or ()
    if not isinstance(said, dict) or not tokens:
        return
    row, token = said.get("pad_id"), said.get("pad_token")
    if type(row) is not int or not isinstance(token, str) or (0 <= row < len(tokens) and tokens[row] == token):
        return
    is_row = f"which is {brief_token(tokens[row])}" if 0 <= row < len(tokens) else "which no token has"
    is_token = f"its id is {tokens.index(token)}" if token in tokens else "which it does not list"
    yield f"{WHOLE} pads texts with {brief_token(token)} ({is_token}), but with the id {row}, {is_row} (padding)"


BY_POSITION = frozenset((
    "albert", "bert", "camembert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "mobilebert", "mpnet",
    "nystromformer", "roberta", "splinter", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
))  # fmt: skip
"""Model types with an embedding row for each position, in which a longer text is an error."""


@notes_of(NoteKind.TOKENISER_SECTION)
def _cut(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if tokenizer.json cuts texts to more tokens than the model has positions."""
    said, most = folder.tokenizer_head.get("truncation"), folder.config.get("max_position_embeddings")
    longest = said.get("max_length") if isinstance(said, dict) else None
    is_limited = folder.config.get("model_type") in BY_POSITION
    if is_limited and type(longest) is int and type(most) is int and longest > most:
        yield f"{WHOLE} cuts texts to {longest} tokens (truncation), but the model has {most} positions"


def _put(processor: Any, *, in_order: bool = False) -> Iterator[tuple[str, int]]:
    """Yield (token, id) of the tokens that a post-processor may add to texts, to single texts or to pairs.

    With ``in_order``, these are the tokens around a single text, in their order.
    """
    if not isinstance(processor, dict):
        return
    for one in _items(processor.get("processors")):
        yield from _put(one, in_order=in_order)
    for field in ("cls", "sep"):
        if isinstance(pair := processor.get(field), list) and len(pair) == 2 and isinstance(pair[0], str):
            yield pair[0], pair[1]
    special = processor.get("special_tokens")
    for name in _used_in(processor, ("single",) if in_order else ("single", "pair")):
        one = special.get(name) if isinstance(special, dict) else None
        if isinstance(one, dict):
            pairs = zip(_items(one.get("tokens")), _items(one.get("ids")), strict=False)
            yield from ((token, row) for token, row in pairs if isinstance(token, str) and type(row) is int)


def _used_in(template: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    """Return the names of the special tokens in ``fields`` of a ``TemplateProcessing``, without duplicates."""
    pieces = [one for field in fields for one in _items(template.get(field)) if isinstance(one, dict)]
    names = (one["SpecialToken"].get("id") for one in pieces if _is_special(one))
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _is_special(piece: dict[str, Any]) -> bool:
    return isinstance(piece.get("SpecialToken"), dict)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
