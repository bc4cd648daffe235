"""What lies beside the weights of a model in a folder of transformers: its configuration, its tokeniser."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..configs import weights_folder_files
from ..errors import ConfigError, SourceError
from ..jsontext import read_json
from ..target import Companion
from ..text import escape
from ..vocabulary import vocabulary_beside
from .model_config import vocabulary_size

__all__ = ["CONFIG", "TOKENIZER", "ModelFolder", "model_folder"]

CONFIG = "config.json"
CHAT = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"
NOT_OF_TOKENIZERS = (
    CONFIG, "feature_extractor_config.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Where a tokeniser's vocabulary is, the first that is there."""
BYTES = 16 << 20


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder; of a single file, and of a folder without config.json, there are no ``files``."""

    path: str
    files: tuple[Companion, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer is the input embedding; transformers takes it so unless it is said."""
        text = self.config.get("text_config")
        fields = {**(text if isinstance(text, dict) else {}), **self.config}
        return bool(fields) and fields.get("tie_word_embeddings", True) is not False

    @property
    def tokenizer(self) -> tuple[Companion, ...]:
        """The files of its tokeniser."""
        return tuple(one for one in self.files if one.name not in NOT_OF_TOKENIZERS)

    def has_tokens_of(self, other: ModelFolder) -> bool:
        """Whether two models have the same tokens in the same order; one without a vocabulary has any."""
        if not self.vocabulary or not other.vocabulary:
            return True
        alone = os.path.basename(self.vocabulary) == VOCABULARIES[0]  # further tokens may lie beside the other kinds
        if self._digest == other._digest and (alone or self._tokens is None):
            return True
        return self._tokens is not None and self._tokens == other._tokens

    @property
    def rows(self) -> int:
        """How many rows its configuration gives the vocabulary, 0 where it does not say."""
        return vocabulary_size(self.config)

    @property
    def has_a_row_for_each_token(self) -> bool:
        """Whether it has as many rows as tokens, as far as is known."""
        if not self.rows or not self.vocabulary or self._tokens is None:
            return True
        return self.rows == len(self._tokens)

    @property
    def vocabulary(self) -> str:
        """The path of its tokens, '' where it has none."""
        named = {one.name: one.path for one in self.files}
        return next((named[one] for one in VOCABULARIES if one in named), "")

    @cached_property
    def _digest(self) -> bytes:
        try:
            with open(self.vocabulary, "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise SourceError(f"{escape(self.vocabulary)} cannot be read: {error.strerror}.") from error

    @cached_property
    def _tokens(self) -> tuple[str, ...] | None:
        with suppress(ConfigError):
            return vocabulary_beside(self.vocabulary).tokens
        return None

    @property
    def chat_template(self) -> str:
        """The chat template of its tokeniser, '' where it has none."""
        named = {one.name: one.path for one in self.files}
        if CHAT in named:
            return _read(named[CHAT]).decode("utf-8", "replace")
        said = _json(named[TOKENIZER]).get("chat_template") if TOKENIZER in named else None
        if isinstance(said, list):
            said = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
        said = said.get("default") if isinstance(said, dict) else said
        return said if isinstance(said, str) else ""

    def with_template(self, files: tuple[Companion, ...], template: str) -> tuple[Companion, ...]:
        """Return files with another chat template, where transformers looks for it: a file, and an older field."""
        found = [one for one in files if one.name not in (CHAT, "chat_template.json", TOKENIZER)]
        config = next((_json(one.path) for one in files if one.name == TOKENIZER), None)
        if config is not None:
            text = json.dumps({**config, "chat_template": template}, indent=2, ensure_ascii=False) + "\n"
            found.append(Companion(TOKENIZER, text=text))
        return (*found, Companion(CHAT, text=template))


def model_folder(path: str) -> ModelFolder:
    """Return what lies beside the weights; raises SourceError or ConfigError for a config.json that is none."""
    files = weights_folder_files(path) if os.path.isdir(path) else ()
    config = next((one.path for one in files if one.name == CONFIG), "")
    return ModelFolder(path, files, _json(config)) if config else ModelFolder(path)


def _json(path: str) -> dict[str, Any]:
    try:
        data = read_json(_read(path))
    except ValueError as error:
        raise ConfigError(f"{escape(path)} is no JSON: {escape(str(error))}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{escape(path)} is no JSON object.")
    return data


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(BYTES)
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
