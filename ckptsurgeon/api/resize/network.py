"""Reads the network to resize, and the user's requests: fields, indices to keep, the vocabulary."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.opening import open_checkpoint
from ...destinations.hf.resizable import Resizable
from ...destinations.resizable_model import resizable
from ...errors import ConfigError
from ...planning.resizing.fields import role_of
from ...util.notes import reworded
from ...util.text import escape
from ..inputs.argument_types import Fields, Kept
from .arguments import fields_of, kept_of
from .request import Request
from .source_names import refuse_gguf
from .vocabulary import vocabulary_step
from .vocabulary_choices import VocabularyStep

__all__ = ["AskedNetwork", "asked_network"]

CONFIG = "config.json"


@dataclass(frozen=True)
class AskedNetwork:
    """The network of the source (``base``), and the changes to make.

    ``given`` has the new values of fields as the user names them, and ``fields`` has the same values under the fields'
    main names. If the model type changes, these are fields of the new type. ``kept`` maps fields to the indices to
    keep. ``vocabulary`` is the change of the vocabulary, if there is one.
    """

    base: Resizable
    given: Mapping[str, Any]
    fields: Mapping[str, Any]
    kept: Mapping[str, Sequence[int]]
    vocabulary: VocabularyStep | None = None

    def as_given(self, note: str) -> str:
        """Return a note with the names of fields as the user writes them: T5's ``hidden_size``, not ``d_model``."""
        for name in self.given:
            main = self.base.main_name(name) if name not in self.fields else name
            if main != name:
                note = reworded(note, re.sub(rf"(?<![\w.]){re.escape(main)}(?![\w.])", name, note))
        return note


def asked_network(asked: Request, fields: Fields, keep: Kept) -> AskedNetwork:
    """Return the network of the source, and the changes by ``fields``, ``keep`` and the vocabulary of ``asked``.

    Raises ConfigError if there is no configuration, or if arguments do not fit together; PlanError if a token list is
    not the model's.
    """
    base = resizable(_config(asked))
    kept = {base.main_name(name): value for name, value in kept_of(keep).items()}
    has_vocabulary = bool(asked.tokens.tokenizer or asked.tokens.corpora)
    given = fields_of(fields, is_needed=asked.model_type is None and not has_vocabulary)
    _check_known(base, asked, given)
    if asked.model_type is not None:
        _check_type_alone(asked)
        return AskedNetwork(base, given, given, kept)
    _check_same_type(asked.expert)
    named = {base.main_name(name): value for name, value in given.items()}
    return AskedNetwork(base, given, named, kept, vocabulary_step(base, named, asked.tokens))


def _config(asked: Request) -> str:
    """Return the path of the configuration: the file in ``--config``, or the config.json next to the weights.

    Raises ConfigError if there is neither.
    """
    if asked.config:
        return asked.config
    path = asked.path
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    found = os.path.join(folder, CONFIG)
    if "://" in path or not os.path.isfile(found):
        with open_checkpoint(path, asked.root) as opened:  # raises the error if the file does not exist
            refuse_gguf(opened)
        raise ConfigError(
            f"there is no {CONFIG} in the folder of {escape(path)}, so the architecture of the model is not known.",
            hint="Name the configuration with --config, or fetch the whole folder first.",
        )
    return found


def _check_known(base: Resizable, asked: Request, fields: Mapping[str, Any]) -> None:
    """Raise ConfigError if another model type or vocabulary is wanted, but the network is not of transformers."""
    wanted: dict[str, Any] = {
        "--as": asked.model_type,
        "--tokenizer": asked.tokens.tokenizer,
        "--trim": asked.tokens.corpora,
        "--donor": asked.tokens.donor,
    }
    wanted.update({f"--set {escape(name)}": True for name in fields if role_of(name) == "vocabulary"})
    given = next((option for option, value in wanted.items() if value), "")
    if given and not base.is_known:
        raise ConfigError(
            f"{given} is only for networks of transformers, which {escape(os.path.basename(base.path))} is not.",
            hint=f"Leave {given} out. For another vocabulary, use ckpt transplant --vocab.",
        )


def _check_type_alone(asked: Request) -> None:
    """Raise ConfigError if the user gave an option for another vocabulary, because ``--as`` allows none.

    This function is called only if the user gave ``--as``.
    """
    tokens = asked.tokens
    options = {
        "--tokenizer": bool(tokens.tokenizer),
        "--trim": bool(tokens.corpora),
        "--no-keep-special": not tokens.keeps_special,
        "--pad-to": tokens.pad_to != 1,
        "--new-tokens": tokens.new != "init",
        "--token-map": bool(tokens.spelled),
        "--donor": bool(tokens.donor),
        "--omp-k": tokens.picks is not None,
    }
    given = next((option for option, is_given in options.items() if is_given), "")
    if given:
        raise ConfigError(
            f"--as changes only the model type, not the vocabulary: {given} has no effect.", hint=f"Leave {given} out."
        )


def _check_same_type(expert: int | None) -> None:
    """Raise ConfigError if ``--expert`` is given without ``--as``."""
    if expert is not None:
        raise ConfigError(
            "--expert needs --as: it chooses the expert that becomes the feed-forward layer of a dense model.",
            hint="Name the type of the dense model, for example, --as llama.",
        )
