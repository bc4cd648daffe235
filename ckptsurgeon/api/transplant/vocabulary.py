"""The options of a transplant about vocabularies: ``--vocab``, ``--vocab-keys``, ``--new-tokens``, ``--token-map``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...destinations.hf.files import CONFIG, is_of_tokenizer
from ...errors import ConfigError, PlanError
from ...planning.keys.pattern import OptionPattern
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...planning.transplant.by_place import PLACE
from ...planning.transplant.vocabulary import VocabularyOptions
from ...storage.read.uri import scheme_of
from ...util.text import escape
from ...vocabulary.beside_model import vocabulary_beside
from ...vocabulary.mapping import map_tokens
from ...vocabulary.vocabulary import vocabulary_of
from ..inputs.argument_types import Patterns, Rules, Vocabularies

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["new_vocabulary", "vocabulary_files", "vocabulary_key", "vocabulary_of_plan", "vocabulary_options"]

TOKENIZER = "tokenizer.json"


def vocabulary_files(vocab: Vocabularies) -> tuple[str, ...]:
    """Return the paths of the token lists of source and destination, from ``SRC:DST`` or a pair.

    Returns () for "place" and None. If the paths contain colons, ``SRC:DST`` is split at the first colon for which both
    files exist. Raises ConfigError for any other form.
    """
    if vocab is None or vocab == PLACE:
        return ()
    if not isinstance(vocab, str):
        found = tuple(os.fspath(path) for path in vocab)
        if len(found) != 2:
            raise ConfigError(
                f"the argument vocab has {len(found)} token lists, not two.",
                hint="Give two lists: the source's, then the destination's.",
            )
        return found
    places = [i for i, char in enumerate(vocab) if char == ":"]
    cuts = [(vocab[:i], vocab[i + 1 :]) for i in places]
    if not cuts or not all(vocab.partition(":")[::2]):
        raise ConfigError(
            f"--vocab {escape(vocab)} does not have the form SRC:DST.", hint="Write --vocab SRC_TOKENS:DST_TOKENS."
        )
    return next((cut for cut in cuts if all(map(os.path.exists, cut))), cuts[0])


def new_vocabulary(files: Sequence[str], spelled: Rules = ()) -> NewVocabulary | None:
    """Return the change from the vocabulary in the first file to that in the second; None if ``files`` is empty.

    ``spelled`` maps tokens of the source to differently written tokens of the destination. Raises ConfigError if a file
    cannot be read, or ``spelled`` is malformed.
    """
    if not files:
        return None
    from ...vocabulary.replacement import NewVocabulary

    return NewVocabulary.at(files, _spelled([spelled] if isinstance(spelled, str) else spelled))


def vocabulary_of_plan(plan: Plan) -> NewVocabulary | None:
    """Return the change of vocabulary in a saved plan; None if it has none. Raises the errors of ``new_vocabulary``."""
    lists, spelled = plan.target.lists, plan.arguments.get("token_map", ())
    if len(lists) != 1:
        return new_vocabulary(lists, spelled)
    from ...vocabulary.replacement import NewVocabulary

    made = tuple(Companion(one.name, text=one.text) for one in plan.target.companions if is_of_tokenizer(one.name))
    text = next(one.text for one in made if one.name == TOKENIZER)
    new = vocabulary_of(TOKENIZER, text.encode())
    return NewVocabulary(vocabulary_beside(lists[0]), new, (lists[0], lists[0]), files=made)


def vocabulary_options(
    change: NewVocabulary | None,
    *,
    keys: Patterns,
    new: str,
    spelled: Rules,
    models: tuple[Sequence[str], str] = ((), ""),
    by_place: bool = False,
) -> VocabularyOptions | None:
    """Return the planner's options for embeddings whose rows are mapped by token; None if ``change`` is None.

    ``keys``, ``new`` and ``spelled`` are the values of --vocab-keys, --new-tokens and --token-map. ``models`` are the
    paths of the sources and of the destination. ``by_place`` is true for --vocab place. Raises ConfigError or
    PatternError if an option is invalid, or is given without a ``change``; PlanError if the two lists are in the wrong
    order (the destination's first).
    """
    named = [keys] if isinstance(keys, str) else list(keys or ())
    if change is None:
        if named or spelled or new != "init":
            raise ConfigError(
                "--vocab-keys, --new-tokens and --token-map have no effect "
                f"{'with --vocab place' if by_place else 'without --vocab'}.",
                hint=f"{'Leave them out, or write' if by_place else 'Write'} --vocab SRC_TOKENS:DST_TOKENS.",
            )
        return None
    rows = map_tokens(change.source, change.new, spelled=change.spelled, new=new, names=change.names)
    own = _are_beside(change.paths, *models)
    if not any(own) and change.source.tokens != change.new.tokens and all(_are_beside(change.paths[::-1], *models)):
        first, second = map(escape, change.paths)
        raise PlanError(
            f"--vocab has {second} as the destination's token list, but this list is in the folder of the source, and "
            f"{first} is in the folder of the destination.",
            hint=f"Put the source's list first: --vocab {second}:{first}.",
        )
    return VocabularyOptions(rows, tuple(vocabulary_key(text) for text in named), own, change.paths)


def _are_beside(paths: Sequence[str], sources: Sequence[str], destination: str) -> tuple[bool, bool]:
    """Return whether the first path is in the folder of a source, and the second in the folder of the destination."""
    return any(_is_beside(paths[0], path) for path in sources), _is_beside(paths[1], destination)


def _is_beside(path: str, model: str) -> bool:
    """Return whether the token list at ``path`` is in the folder of a model.

    ``model`` is the path of the model: its folder, or the config.json in it. The result is False for any other file,
    because its folder may have several models.
    """
    is_config = os.path.basename(model) == CONFIG
    if not model or scheme_of(model) or not (is_config or os.path.isdir(model)):
        return False
    folder = os.path.dirname(model) if is_config else model
    return os.path.realpath(folder or os.curdir) == os.path.realpath(os.path.dirname(path) or os.curdir)


def _spelled(pairs: Rules) -> dict[str, str]:
    if isinstance(pairs, Mapping):
        return dict(pairs)
    found: dict[str, str] = {}
    for pair in pairs or ():
        rest, equals, target = pair[1:].partition("=")  # the token may be "=" itself
        source = pair[:1] + rest
        if not equals or not target:
            raise ConfigError(
                f"--token-map {escape(pair)} does not have the form SRC=DST.",
                hint="Write, for example, '<blank>=[PAD]'.",
            )
        if source in found:
            raise ConfigError(f"--token-map has the token {escape(source)} twice.", hint="Leave one of the two out.")
        found[source] = target
    return found


def vocabulary_key(text: str) -> tuple[OptionPattern, int | None]:
    """Return the pattern and the axis (or None) in ``GLOB`` or ``GLOB=AXIS``; raises ConfigError or PatternError."""
    pattern, equals, axis = text.rpartition("=")
    if not equals:
        pattern, axis = text, ""
    elif not (axis.isascii() and axis.isdigit() and len(axis) < 3):
        raise ConfigError(
            f"--vocab-keys {escape(text)}: {escape(axis)} is not the index of an axis.",
            hint="Count axes from 0, as in GLOB=0.",
        )
    return OptionPattern.of("--vocab-keys", pattern, f"{equals}{axis}"), int(axis) if axis else None
