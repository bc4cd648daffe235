"""The files that a model's folder has in addition to the weights: configuration and tokeniser."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import folder_of_model
from ...destinations.hf.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CONFIG,
    FLAGS,
    is_card,
    is_of_tokenizer,
    licence_files,
    linked_away,
    model_files,
)
from ...destinations.hf.sentence_modules import is_module_weights
from ...errors import ConfigError, SourceError
from ...formats.base.format_table import shards_among
from ...formats.base.sharded_writer import RECIPE_FILE
from ...formats.ranks.rank_files import has_rank_files
from ...formats.unsupported.folders import PIPELINE
from ...planning.plan.files import FilePrint
from ...planning.target import Companion
from ...storage.folder_files import broken_links
from ...storage.json_text import read_json
from ...storage.read.base import Folder
from ...storage.read.uri import SMALL_BYTES, leads_out, open_source, read_small, scheme_of
from ...util.note_kind import NoteKind
from ...util.notes import Note, with_prefix
from ...util.text import escape, listing
from .adapter_beside import adapter_notes
from .config import TIES, untied_by_default, vocabulary_size
from .documents import (
    BYTE_PAIRS,
    CHAT,
    SECOND,
    TOKENIZER,
    VOCABULARIES,
    parsed_object,
)
from .embedded import EmbeddedModel, embedded_model

if TYPE_CHECKING:
    from ...vocabulary.vocabulary import Vocabulary

__all__ = ["LARGEST", "ModelFolder", "model_folder", "model_folder_at"]

KIND = "model_type"
VERL = "huggingface"
"""The subfolder of a verl checkpoint that has the configuration and the tokeniser."""
SCHEDULER, MOST_PARTS = "scheduler_config.json", 16
"""The configuration of a scheduler of diffusers, and the most folders of a pipeline that are looked at."""
LARGEST = 256 << 20
"""The largest file with a vocabulary, in bytes, that is read."""
UNLISTED = "a web server does not list its folders, so no configuration or tokeniser is read or copied"

_NO_FAULT = Note(NoteKind.REMARK, "")


@dataclass(frozen=True)
class ModelFolder:
    """The configuration and the tokeniser files in a model's folder, which are copied to outputs.

    ``files`` is empty for a single file of weights in a folder without a configuration. ``linked`` has the names
    of configuration and tokeniser files that are not copied, because they are symbolic links to files outside the
    folder. ``licences`` are the files with terms of use, and ``cards`` the names of model cards, which are not copied.
    ``left`` has the names of all other files, which are not copied either. ``unlisted`` is true for a web address,
    whose folder cannot be listed. ``adapter_beside`` is None unless the folder of a complete model also has an
    adapter_config.json. Then it is the name of the file with the adapter's weights, '' if this file is missing.
    ``embedded`` has the metadata inside the file of weights, if this is a GGUF file. ``parts`` are the configurations
    in the folders of a diffusers pipeline, and its index; they are only compared.
    """

    path: str
    files: tuple[Companion, ...] = ()
    linked: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unlisted: bool = False
    adapter_beside: str | None = None
    embedded: EmbeddedModel | None = field(default=None, repr=False, compare=False)
    licences: tuple[Companion, ...] = ()
    cards: tuple[str, ...] = ()
    parts: tuple[Companion, ...] = ()

    @property
    def is_bare(self) -> bool:
        """Whether there is nothing but weights: no other file of any kind, and no metadata inside the weights."""
        return self.embedded is None and self == ModelFolder(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on files that are not copied, and on an adapter in the folder of a complete model."""
        if self.unlisted:
            return (UNLISTED,)
        adapter = (with_prefix(f"{escape(self.path)}: ", note) for note in adapter_notes(self.adapter_beside))
        return (*self.left_notes, *adapter)

    @property
    def left_notes(self) -> tuple[str, ...]:
        """Notes on files that are not copied."""
        linked = f"symbolic links to files outside the folder are not copied: {listing(self.linked, 12, where='')}"
        names = (*self.cards, *self.left)
        left = f"files in the folder that are not copied: {listing(names, 12, where='')}"
        if PIPELINE in names:
            left = f"{left}; --to diffusers writes a pipeline into a folder that has copies of them"
        return (*((linked,) if self.linked else ()), *((left,) if names else ()), *self._module_notes)

    @property
    def _module_notes(self) -> tuple[str, ...]:
        """A note on weights of further modules, which are only copied."""
        weights = [one.name for one in self.files if is_module_weights(one.name)]
        said = (
            f"the weights of further modules of {escape(self.path)} are copied unchanged: {listing(weights, where='')}"
        )
        return (said,) if weights else ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The fields of the folder's config.json; empty if it is missing or cannot be read (see ``fault``)."""
        return self._config[0]

    @property
    def fault(self) -> Note:
        """The reason why config.json cannot be read or has an invalid ``model_type``; '' if there is no such fault."""
        return self._config[1]

    @cached_property
    def _config(self) -> tuple[Mapping[str, Any], Note]:
        fields, fault = self._fields(CONFIG)
        kind = fields.get(KIND)
        if kind is None or isinstance(kind, str):
            return fields, fault
        is_not = f"its {KIND} is {escape(json.dumps(kind), 40)}, not the name of a model"
        return {}, Note(NoteKind.UNREADABLE_FILE, f"{self._file(CONFIG).path}: {is_not}")

    @cached_property
    def adapter(self) -> Mapping[str, Any]:
        """The fields of the folder's adapter_config.json; empty if it is missing or cannot be read."""
        return self._fields(ADAPTER)[0]

    def _fields(self, name: str) -> tuple[Mapping[str, Any], Note]:
        if all(one.name != name for one in self.files):
            return {}, _NO_FAULT
        try:
            return self.document(name), _NO_FAULT
        except (ConfigError, SourceError) as error:
            kind = NoteKind.UNREADABLE_FILE if isinstance(error, ConfigError) else NoteKind.CONFIGURATION
            return {}, Note(kind, error.message)

    @property
    def said_tied(self) -> bool | None:
        """The boolean ``tie_word_embeddings`` in the configuration; None if it is missing or not a boolean."""
        text = self.config.get("text_config")
        declared = {**(text if isinstance(text, dict) else {}), **self.config}.get(TIES)
        return declared if isinstance(declared, bool) else None

    @property
    def is_tied(self) -> bool:
        """Whether the output layer uses the input embedding: as the configuration says, else by default of its type."""
        declared = self.said_tied
        return declared if declared is not None else bool(self.config) and not untied_by_default(self.config)

    @property
    def tokenizer(self) -> tuple[Companion, ...]:
        """The files of the folder's tokeniser."""
        return tuple(one for one in self.files if is_of_tokenizer(one.name))

    def has_tokens_of(self, other: ModelFolder) -> bool:
        """Return whether both models have the same tokens in the same order; also true if one has no vocabulary."""
        if not self.vocabulary or not other.vocabulary:
            return True
        if self._digest == other._digest and (self.has_all_tokens or self.tokens is None):
            return True
        return self.tokens is not None and self.tokens == other.tokens

    def other_list(self, other: ModelFolder) -> str:
        """Return the name of the first additional token list (for a target language, say) that differs in ``other``.

        Returns '' if none differs.
        """
        both = {one.name for one in self.files} & {one.name for one in other.files} & {*SECOND}
        return next((name for name in SECOND if name in both and self._hash(name) != other._hash(name)), "")

    @property
    def has_all_tokens(self) -> bool:
        """Whether the vocabulary file includes the added tokens, as only tokenizer.json does."""
        return self.vocabulary == VOCABULARIES[0]

    @property
    def rows(self) -> int:
        """The vocabulary size in the configuration; 0 if it is not set."""
        return vocabulary_size(self.config)

    @property
    def has_a_row_for_each_token(self) -> bool:
        """Whether the vocabulary size equals the number of tokens; also true if one of the two is unknown."""
        if not self.rows or not self.vocabulary or self.tokens is None:
            return True
        return self.rows == len(self.tokens)

    @property
    def vocabulary(self) -> str:
        """The name of the vocabulary file; '' if there is none."""
        named = {one.name for one in self.files}
        return next((one for one in VOCABULARIES if one in named), "")

    @cached_property
    def _digest(self) -> bytes:
        return self._hash(self.vocabulary)

    def _hash(self, name: str) -> bytes:
        return hashlib.sha256(self.read(name, LARGEST)).digest()

    @property
    def tokens(self) -> tuple[str, ...] | None:
        """The tokens in the order of their ids; None if they cannot be read."""
        return None if self.token_list is None else self.token_list.tokens

    @property
    def token_list(self) -> Vocabulary | None:
        """The tokens with other properties that their file states (kind, added tokens); None if they cannot be read."""
        return self._token_list[0]

    @property
    def unread_tokens(self) -> str:
        """The reason why the tokens cannot be read; "" if they can be read."""
        return self._token_list[1]

    @cached_property
    def _token_list(self) -> tuple[Vocabulary | None, str]:
        from ...vocabulary.beside_model import vocabulary_in

        named = {one.name for one in self.files}
        try:
            return vocabulary_in(self.vocabulary, lambda name: self.read(name, LARGEST) if name in named else None), ""
        except ConfigError as error:
            return None, error.message

    @cached_property
    def tokenizer_head(self) -> Mapping[str, Any]:
        """The sections of tokenizer.json, without the token list; empty if this file is missing or remote."""
        if self.vocabulary != VOCABULARIES[0] or scheme_of(self._file(self.vocabulary).path):
            return {}
        from ...vocabulary.tokenizer_head import tokenizer_head

        return tokenizer_head(self.read(self.vocabulary, LARGEST))

    @cached_property
    def pieces(self) -> Mapping[str, tuple[str, ...] | None]:
        """The pieces of the folder's local sentencepiece models, by file name; None for a truncated file."""
        from ...vocabulary.byte_pairs import VOCABULARY as TIKTOKEN
        from ...vocabulary.row_order import is_of_pieces
        from ...vocabulary.sentencepiece import pieces_in
        from ...vocabulary.vocabulary import has_marks

        found = dict[str, tuple[str, ...] | None]()
        for one in self.tokenizer:
            if is_of_pieces(one.name) and one.name not in BYTE_PAIRS and one.path and not scheme_of(one.path):
                with suppress(ConfigError, SourceError):  # an unreadable file is reported when it is copied
                    data = read_small(one.path, LARGEST)  # without a fingerprint: no plan depends on this file
                    if not has_marks(TIKTOKEN, one.name, data):
                        found[one.name] = pieces_in(data)
        return found

    @property
    def chat_template(self) -> str:
        """The chat template of the tokeniser; '' if there is none."""
        named = {one.name for one in self.files}
        if CHAT in named:
            return self.read(CHAT).decode("utf-8", "replace")
        template = self.document(TOKENIZER).get("chat_template") if TOKENIZER in named else None
        if isinstance(template, list):
            template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = template.get("default") if isinstance(template, dict) else template
        return template if isinstance(template, str) else ""

    def document(self, name: str) -> Mapping[str, Any]:
        """Return the JSON object in one of the folder's files; raises SourceError or ConfigError if there is none.

        The object is parsed once and shared by all callers, so do not change it.
        """
        if name not in self._parsed:
            one = self._file(name)
            self._parsed[name] = read_json(one.text) if one.text else parsed_object(self.read(name), one.path)
        return self._parsed[name]

    def read(self, name: str, most: int = SMALL_BYTES) -> bytes:
        """Return the bytes of one of the folder's files; small files are read only once."""
        one = self._file(name)
        if one.text:
            return one.text.encode()
        data = self._kept.get(name)
        if data is None:
            data = read_small(one.path, most)
            self._prints.setdefault(name, FilePrint(name, len(data), hashlib.sha256(data).hexdigest()))
            if len(data) <= SMALL_BYTES:
                self._kept[name] = data
        return data

    @property
    def prints(self) -> tuple[FilePrint, ...]:
        """The fingerprints of the files that were read, sorted by name."""
        return tuple(self._prints[name] for name in sorted(self._prints))

    def knowing(self, prints: Iterable[FilePrint]) -> ModelFolder:
        """Record ``prints``, the fingerprints of the files from which this folder was derived; return this folder."""
        self._prints.update((one.name, one) for one in prints)
        return self

    def fingerprint(self, *names: str) -> None:
        """Read the files with these names, if they exist, to record their fingerprints; raises SourceError."""
        for one in self.files:
            if one.name in names and one.name not in self._prints and one.path:
                self.read(one.name)

    @cached_property
    def _prints(self) -> dict[str, FilePrint]:
        return {}

    @cached_property
    def _parsed(self) -> dict[str, Mapping[str, Any]]:
        return {}

    @cached_property
    def _kept(self) -> dict[str, bytes]:
        return {}

    def _file(self, name: str) -> Companion:
        return next(one for one in self.files if one.name == name)


def model_folder(checkpoint: Checkpoint) -> ModelFolder:
    """Return the configuration and tokeniser files in the folder of an open checkpoint."""
    # in ``open_files``, the name of a single file is ''
    weights = {name.partition("/")[0] for name in checkpoint.open_files()}
    weights |= {file.name for file in checkpoint.open_files().values()}
    found = _folder(checkpoint.path, checkpoint.folder, weights)
    return replace(found, embedded=embedded_model(checkpoint)) if checkpoint.header.stored else found


def model_folder_at(path: str) -> ModelFolder:
    """Return the configuration and tokeniser files in the folder at ``path``, without reading its weights.

    ``path`` may be a file of weights in this folder: one with a usual name, such as model.safetensors, or a shard.
    """
    source = open_source(path)
    if isinstance(source, Folder):
        return _folder(path, source)
    with closing(source):
        folder = source.folder() if shards_among([source.name]) else folder_of_model(source)
        return _folder(path, folder, (source.name,))


def _has_both(files: Sequence[Companion], weights: Collection[str]) -> bool:
    """Return whether a folder with a complete model, whose weights were opened, also has an adapter_config.json.

    ``weights`` has the names of the weights files that were opened. If these are an adapter's, the result is false.
    """
    return {CONFIG, ADAPTER} <= {one.name for one in files} and not set(ADAPTER_WEIGHTS).intersection(weights)


def _settings(folder: Folder) -> Folder:
    """Return the folder with the configuration and the tokeniser: a subfolder for verl, else ``folder`` itself."""
    names = folder.names()
    return folder.inside(VERL) if CONFIG not in names and VERL in folder.folders() and has_rank_files(names) else folder


def _folder(path: str, folder: Folder | None, weights: Collection[str] = ()) -> ModelFolder:
    """Return the configuration and tokeniser files in a folder of weights.

    ``path`` is the path that the user gave. ``folder`` is this folder, or the folder of this file; None if there is no
    such folder, or if ``path`` is a file whose name does not show that it has the weights of a model. ``weights`` has
    the names of the weights files.
    """
    if folder is None:
        return ModelFolder(path)
    if scheme_of(path) in ("http", "https"):
        return ModelFolder(path, unlisted=True)
    own = _settings(folder)
    files = model_files(own)
    if path != folder.uri and not any(one.name in (CONFIG, ADAPTER, FLAGS) for one in files):
        return ModelFolder(path)  # a single file was opened, and its folder is not the folder of a model
    beside = None
    if weights and _has_both(files, weights):
        files = tuple(one for one in files if one.name != ADAPTER)
        beside = next((name for name in ADAPTER_WEIGHTS if name in own.names()), "")
    linked = linked_away(own)
    licences = licence_files(own) or licence_files(folder)
    cards = tuple(name for name in folder.names() if is_card(name))
    known = {*(one.name for one in (*files, *licences)), *cards, *linked, *weights, RECIPE_FILE}
    inside = () if own is folder else (VERL,)
    carried = {one.name.partition("/")[0] for one in files if "/" in one.name}
    others = [*folder.names(), *(f"{name}/" for name in folder.folders() if name not in (*weights, *inside, *carried))]
    others += (f"{module}/{name}" for module in sorted(carried) for name in own.inside(module).names())
    others += (f"{name} (a broken link)" for name in broken_links(folder))
    left = tuple(name for name in others if name not in known and not name.startswith("."))
    return ModelFolder(
        path, files, linked, left, adapter_beside=beside, licences=licences, cards=cards, parts=_parts(folder)
    )


def _parts(folder: Folder) -> tuple[Companion, ...]:
    """Return the index of a diffusers pipeline and the configurations of its components; () for another folder."""
    if PIPELINE not in folder.names():
        return ()
    places = [(PIPELINE, folder)] + [
        (f"{component}/{name}", inner)
        for component in folder.folders()[:MOST_PARTS]
        for inner in (folder.inside(component),)
        for name in (CONFIG, SCHEDULER)
        if name in inner.names()
    ]
    found = [Companion(name, os.path.join(inner.uri, os.path.basename(name))) for name, inner in places]
    return tuple(one for one in found if not leads_out(one.path) and not leads_out(os.path.dirname(one.path)))
