"""The vocabulary of a merge: the output's tokens, the models' rows for them, and the files of the tokeniser."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...destinations.hf.tokens import tokenizer_of
from ...errors import ConfigError
from ...planning.keys.spelling import quoted
from ...planning.merge.vocabulary import MergeVocabulary
from ...planning.plan.files import SourceView
from ...planning.target import Companion
from ...planning.transplant.by_place import vocabulary_keys
from ...storage.small_files import read_file
from ...util.text import escape, listing
from ...vocabulary.beside_model import read_lists, tokens_beside, vocabulary_beside
from ...vocabulary.replacement import token_file, with_added_tokens
from ...vocabulary.union import rows_in, united
from ...vocabulary.vocabulary import VOCABULARY_BYTES, Vocabulary
from ..model_folder.folder import ModelFolder
from ..model_folder.rows_by_place import other_list_notes
from ..model_folder.tokenizer.given_list import given_list_notes
from ..transplant.vocabulary import vocabulary_key
from .request import BASE, UNION, VocabularyRequest
from .tokenizers import chosen_rows

__all__ = [
    "ModelTokens",
    "config_for",
    "known_keys",
    "merge_vocabulary",
    "token_files",
]


@dataclass(frozen=True)
class InputModel:
    """One of the models to merge: its path, its tensors (``view``) and the files in its folder."""

    path: str
    view: SourceView
    folder: ModelFolder

    def size(self, tokens: int) -> int:
        """Return the number of rows of the model's embedding; ``tokens`` is the number of tokens in its list.

        The result is the vocabulary size in config.json if a tensor has a dimension of this size, else ``tokens``.
        """
        said = self.folder.rows
        long = said and any(said in info.shape for info in self.view.tensors.values())
        return said if long else tokens


@dataclass(frozen=True)
class ModelTokens:
    """The token lists of the models to merge (``lists``, read from ``paths``), and that of the output (``output``).

    ``size`` is the number of rows of the output's embedding. ``of`` is the index of the model that has the same tokens
    as the output, None if there is none. ``path`` is the file of the output's list, '' if there is no such file.
    ``begins`` is the file whose tokens come first in the output. ``added`` are tokens in the recipe that are in no
    token list.
    """

    paths: tuple[str, ...]
    lists: tuple[Vocabulary, ...]
    output: Vocabulary
    size: int
    of: int | None
    path: str
    begins: str
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def merge_vocabulary(
    asked: VocabularyRequest, models: Sequence[InputModel], *, first: int
) -> tuple[MergeVocabulary, ModelTokens] | None:
    """Return (the mapping of rows by token, the token lists); None if rows are not merged by token.

    ``first`` is the index of the base or, without a base, of the first model. Raises ConfigError for a missing list,
    PatternError for an invalid pattern.
    """
    named = [asked.keys] if isinstance(asked.keys, str) else list(asked.keys or ())
    if not asked.is_by_token() or asked.vocab is None:
        return None
    found = _paths(models, asked, first)
    names = [one.view.source.name for one in models]
    read = read_lists(found, vocabulary_beside)
    lists = tuple(replace(one, name=name) for one, name in zip(read, names, strict=True))
    output, begins, path = _output(asked.vocab, lists, found, first)
    added = asked.rows.added(output.tokens) if asked.rows is not None else ()
    output = replace(output, tokens=(*output.tokens, *added))
    new = "others or zero" if asked.rows is not None else "others"
    sizes = [one.size(len(own.tokens)) for one, own in zip(models, lists, strict=True)]
    rows = tuple(rows_in(own, output, size=size, new=new) for own, size in zip(lists, sizes, strict=True))
    notes = [
        note
        for one, own, path in zip(models, lists, found, strict=True)
        if asked.tokens
        for note in _list_notes(one, (own.tokens, path))
    ]
    if asked.rows is not None:
        rows, more = chosen_rows(asked.rows, rows, lists, output.tokens)
        notes += more
    if not named and len(set(sizes)) == 1:
        # All models have the same size, so shapes do not show which tensors have a row for each token. In models of
        # transformers, the keys show it.
        named = known_keys(models) if all(one.folder.config for one in models) else []
    keys = tuple(vocabulary_key(text) for text in named)
    several = frozenset(number for number, one in enumerate(lists) if not one.is_whole)
    chosen = MergeVocabulary(rows, output.tokens, tuple(one.tokens for one in lists), keys, several)
    of = next((number for number in (first, *range(len(lists))) if lists[number].tokens == output.tokens), None)
    path = found[of] if of is not None else "" if added else path
    return chosen, ModelTokens(tuple(found), lists, output, chosen.size, of, path, begins, added, tuple(notes))


def _list_notes(model: InputModel, given: tuple[Sequence[str], str]) -> Iterator[str]:
    """Yield notes if a list in ``--tokens`` (``given``: its tokens and its path) is not the token list of the model."""
    name = model.view.source.name
    if not model.folder.vocabulary:
        yield from given_list_notes(model.folder, given, name)
    elif not _is_beside(given[1], model):
        yield from other_list_notes(given, model.folder.tokens or (), name, "--tokens")


def _is_beside(path: str, model: InputModel) -> bool:
    """Return whether the token list at ``path`` is in the folder of the model; another note compares such a list."""
    return os.path.realpath(os.path.dirname(path) or os.curdir) == os.path.realpath(model.folder.path)


def known_keys(models: Sequence[InputModel]) -> list[str]:
    """Return patterns (GLOB=AXIS) for the tensors that, by their names and sizes, have a row or column per token."""
    found = dict.fromkeys(
        key
        for one in models
        for key in vocabulary_keys(one.view.tensors)
        if not one.folder.rows or one.view.tensors[key].shape[:1] == (one.folder.rows,)
    )
    columns = dict.fromkeys(
        key
        for one in models
        for key, info in one.view.tensors.items()
        if key.rpartition(".")[2] == LOGITS and info.shape == (1, one.folder.rows)
    )
    return [*(f"{quoted(key)}=0" for key in found), *(f"{quoted(key)}=1" for key in columns)]


LOGITS = "final_logits_bias"
"""The name of the tensor that BART, Marian and Pegasus add to the logits: its shape is (1, number of tokens)."""


def _output(vocab: str, lists: Sequence[Vocabulary], paths: Sequence[str], first: int) -> tuple[Vocabulary, str, str]:
    """Return (vocabulary of the output, file whose tokens come first in it, file with all its tokens).

    The last is '' for a union, whose tokens are in no single file. ``vocab`` is "union", "base" or the path of a token
    list. ``lists`` and ``paths`` are the models' token lists and their files; ``first`` is the index of the base or,
    without a base, of the first model.
    """
    if vocab.lower() == UNION:
        order = [first, *(number for number in range(len(lists)) if number != first)]
        return united([lists[number] for number in order]), paths[first], ""
    if vocab.lower() == BASE:
        return lists[first], paths[first], paths[first]
    return vocabulary_beside(vocab), vocab, vocab


def _paths(models: Sequence[InputModel], asked: VocabularyRequest, first: int) -> list[str]:
    """Return the path of each model's token list: from --tokens, else from the model's folder.

    In a recipe of mergekit, a model without a list gets the list of the model at index ``first``. Raises ConfigError
    for an unknown model, for a model with two lists, and for a model without a list.
    """
    names = {name: number for number, one in enumerate(models) for name in (one.path, one.view.source.name)}
    tokens = asked.tokens
    pairs = tokens.items() if isinstance(tokens, Mapping) else [_pair(text, names) for text in _texts(tokens)]
    given: dict[int, str] = {}
    for model, path in pairs:
        if model not in names:
            known = ", ".join(escape(one.view.source.name) for one in models)
            raise ConfigError(f"--tokens: {escape(model)} is not one of the models.", hint=f"Use one of {known}.")
        if names[model] in given:
            raise ConfigError(f"--tokens has two lists for the model {escape(model)}.", hint="Leave one out.")
        given[names[model]] = os.fspath(path)
    own = given.get(first) or _tokens_of(models[first])
    return [
        given.get(number) or (own if number == first else _beside(one, asked, own)) for number, one in enumerate(models)
    ]


def _beside(model: InputModel, asked: VocabularyRequest, first: str) -> str:
    lacks = asked.rows is not None and model.folder.config and not model.folder.vocabulary
    return first if lacks else _tokens_of(model)


def _tokens_of(model: InputModel) -> str:
    if model.view.source.memory:
        name = escape(model.view.source.name)
        raise ConfigError(
            f"the model {name} is in memory, so it has no token list.", hint=f"Write tokens={{{name!r}: LIST}}."
        )
    return tokens_beside(model.path)


def _texts(tokens: Iterable[str] | None) -> list[str]:
    return [tokens] if isinstance(tokens, str) else list(tokens or ())


def _pair(text: str, known: Collection[str]) -> tuple[str, str]:
    """Return MODEL and LIST of a string MODEL=LIST, split at the "=" after one of the ``known`` models.

    If no known model precedes a "=", the string is split at the first "=". Raises ConfigError if MODEL or LIST is
    missing.
    """
    places = [at for at, char in enumerate(text) if char == "="]
    cuts = [(text[:at], text[at + 1 :]) for at in places]
    if not cuts or not all(cuts[0]):
        raise ConfigError(
            f"--tokens {escape(text)} does not have the form MODEL=LIST.", hint="Write --tokens MODEL=LIST."
        )
    return next((cut for cut in cuts if cut[0] in known), cuts[0])


# The files of an output folder with its token list or tokeniser.

TOKENIZER = "tokenizer.json"


def token_files(
    chosen: ModelTokens, files: Sequence[Companion], folders: Sequence[ModelFolder], donor: int
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return (files, notes): ``files`` for an output folder, with the tokeniser or token list of its vocabulary.

    If a model has the same vocabulary as the output, the output gets its tokeniser. For a union, the output gets the
    donor's tokeniser with the additional tokens, if the tokenisers differ in nothing else; otherwise it gets only a
    token list. If the user gave the list as a file, the output gets the tokeniser next to this file. If that folder has
    no tokeniser with the same tokens, the output gets the file itself.
    """
    own = {one.name for one in folders[donor].tokenizer}
    rest = tuple(one for one in files if one.name not in own or one.text)  # keep a requested chat template
    if chosen.of is not None and folders[chosen.of].tokenizer:
        theirs = [one for one in folders[chosen.of].tokenizer if one.name not in {other.name for other in rest}]
        return (*rest, *theirs), []
    if chosen.path:
        if any(one.path == chosen.path for one in files):  # the recipe chose this model's tokeniser
            return tuple(files), []
        return _with_list(chosen, rest, own)
    text = _extended(chosen)
    if text is not None and any(one.name == TOKENIZER for one in files):
        kept = tuple(one for one in files if one.name != TOKENIZER)
        return (*kept, Companion(TOKENIZER, text=text)), []
    name, text = token_file(chosen.output.tokens)
    return (*rest, Companion(name, text=text)), _without(own, {name, *(one.name for one in rest)})


def _with_list(
    chosen: ModelTokens, rest: Sequence[Companion], own: Collection[str]
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return (files, notes) for an output whose token list is a file that the user gave.

    ``rest`` are the donor's files that do not belong to its tokeniser, and ``own`` are the names of its tokeniser's
    files.
    """
    theirs = tokenizer_of(chosen.path, chosen.output)
    if not theirs:
        name = os.path.basename(chosen.path)
        return (*rest, Companion(name, chosen.path)), _without(own, {name, *(one.name for one in rest)})
    kept = {one.name for one in rest}
    missing = listing(sorted(set(own) - kept - {one.name for one in theirs}), 12, where="")
    notes = [f"files left out, because none of them is next to {escape(chosen.path)}: {missing}"] if missing else []
    return (*rest, *(one for one in theirs if one.name not in kept)), notes


def _without(own: Collection[str], kept: Collection[str]) -> list[str]:
    """Return a note that the output has no tokeniser; it names the files of the donor's tokeniser that are left out.

    ``own`` are the names of the files of the donor's tokeniser; without such files, the list is empty. ``kept`` are the
    names of the files that the output gets.
    """
    if not own:
        return []
    left = [name for name in sorted(own) if name not in kept]
    named = f"; files of the tokeniser that are left out: {listing(left, 12, where='')}" if left else ""
    return [f"the output has a token list but no tokeniser: create a tokeniser with the same tokens and ids{named}"]


def _extended(chosen: ModelTokens) -> str | None:
    """Return a tokenizer.json with the tokens of all models, as text; None if this is impossible.

    It is the file of the model whose tokens come first in the output, with the other models' tokens added.
    """
    paths = dict.fromkeys((chosen.begins, *chosen.paths))
    if any(os.path.basename(path) != TOKENIZER for path in paths):
        return None
    first, *others = map(_read, paths)
    return with_added_tokens(first, others, chosen.output.tokens, chosen.added)


def _read(path: str) -> bytes:
    return read_file(path, VOCABULARY_BYTES)  # the same limit as for reading vocabularies


def config_for(config: Mapping[str, Any], size: int) -> tuple[dict[str, Any], list[str]]:
    """Return (``config`` with the vocabulary size ``size``, notes); a note says if there is no field for the size."""
    changed = dict(config)
    if not config:
        return changed, []
    if isinstance(changed.get("text_config"), dict) and "vocab_size" in changed["text_config"]:
        changed["text_config"] = {**changed["text_config"], "vocab_size": size}
    elif "vocab_size" not in changed:
        return changed, [f"config.json has no field for the vocabulary size, which is now {size}"]
    if "vocab_size" in changed:
        changed["vocab_size"] = size
    return changed, []
