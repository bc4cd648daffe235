"""Reads a destination configuration, checks it for unknown fields and resolves its paths."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..storage.json_text import read_json
from ..storage.small_files import read_file, read_text
from ..util.did_you_mean import did_you_mean
from ..util.text import brief_repr, escape

if TYPE_CHECKING:
    from ..vocabulary.replacement import NewVocabulary

__all__ = ["RELATIVE_TO", "Document", "check_fields", "read_document"]

MAX_BYTES = 64 << 20
RELATIVE_TO = "relative_to"


@dataclass(frozen=True)
class Document:
    """A configuration file that describes a destination: its path, text and content.

    ``content`` is None if the file has tags of a toolkit, which our YAML reader cannot read; ``fault`` is then the
    reader's error. ``model`` and ``train`` are the sections ``model:`` and ``train:``, empty if the file lacks them;
    ``train`` includes the user's changes (``--set``). Loading the destination fills two lists. ``read`` gets the path
    of each file that is read because the configuration refers to it. ``ran`` gets the name of each class or function
    that is imported or called.

    ``vocabulary`` replaces the vocabulary of the model, if given. ``task`` is the ESPnet task that the user chose, if
    any. If ``constructor_weights`` is false, the model is built without the weights that its constructor would load. If
    ``dequantized`` is true, quantization_config is ignored: the model is built with unquantised weights. ``overrides``
    has new values of fields, either of a config.json of transformers or of the section ``model:``. If ``overrides``
    sets ``model_type``, it has all fields of a config.json, and the fields of the file are not used. ``versions`` are
    values that identify the installed code, determined before this process imported that code. If they are None, they
    are determined when they are needed. ``undeclared`` are the names of fields that the user may set, although the
    configuration's class does not declare them.
    """

    path: str
    text: str
    content: Any
    model: Mapping[str, Any]
    fault: ConfigError | None = None
    read: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    vocabulary: NewVocabulary | None = None
    task: str | None = None
    constructor_weights: bool = True
    train: Mapping[str, Any] = field(default_factory=dict)
    dequantized: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] | None = None
    undeclared: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the file, for messages."""
        return os.path.basename(self.path)

    @property
    def folder(self) -> str:
        """The folder to which paths in the file are relative: the folder of the file, unless the file names another.

        The field ``relative_to`` of the file names another folder. ``ckpt train`` writes this field into the copy of
        the configuration in the folder of a run.
        """
        own = os.path.dirname(self.path)
        named = self.content.get(RELATIVE_TO) if isinstance(self.content, dict) else None
        return os.path.normpath(os.path.join(own, named)) if isinstance(named, str) else own

    def resolve(self, path: str) -> str:
        """Return ``path`` as a full path; a relative path is relative to ``folder``."""
        return os.path.normpath(os.path.join(self.folder, path))

    def changed(self, overrides: Mapping[str, Any]) -> Document:
        """Return a copy of the document in which ``overrides`` replace values of the section ``model:``.

        If an override is a mapping, only the fields in it are replaced, in the nested section with this name.
        """
        return replace(self, model=_merged(self.model, overrides), overrides={})

    def fail(self, why: str, hint: str = "") -> ConfigError:
        """Return a ConfigError whose message has the name of this file, and then ``why``, the reason."""
        return ConfigError(f"{escape(self.name)}: {why}", hint=hint)

    def text_file(self, path: Any, what: str) -> str:
        """Return the text of a file to which the configuration refers; raises ConfigError if it cannot be read.

        ``what`` is the name of the field with the path, for messages.
        """
        if not isinstance(path, str):
            raise self.fail(f"the field {what} is {brief_repr(path)}, not a file name.")
        full = self.resolve(path)
        try:
            text = read_file(full).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise self.fail(
                f"the file {escape(full)} (field {what}) cannot be read: {why}.", did_you_mean(full)
            ) from error
        self.read.append(full)
        return text


def _merged(model: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        name: _merged(model[name], one) if isinstance(one, Mapping) and isinstance(model.get(name), Mapping) else one
        for name, one in overrides.items()
    }
    return {**model, **own}


def read_document(path: str, what: str = "destination") -> Document:
    """Read a configuration, in our format or a toolkit's format; raises ConfigError if it cannot be read as text.

    ``what`` is the word for the file in messages, such as "destination".
    """
    try:
        text = read_text(path, MAX_BYTES)
    except UnicodeDecodeError:
        raise ConfigError(
            f"{escape(path)} is not a configuration: it is not UTF-8 text.", hint="Save the file as UTF-8."
        ) from None
    except OSError as error:
        message = f"the {what} {escape(path)} cannot be read: {error.strerror}."
        raise ConfigError(message, hint=did_you_mean(path)) from error
    content, fault = None, None
    try:
        content = _json(text, path) if path.lower().endswith(".json") else _yaml(text, path)
    except ConfigError as error:
        fault = error
    model, train = (_section(content, name) for name in ("model", "train"))
    return Document(path, text, content, model, fault, train=train)


def _section(content: Any, name: str) -> Mapping[str, Any]:
    found = content.get(name) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _yaml(text: str, path: str) -> Any:
    from ..storage.yaml_text import read_yaml  # imports yaml, which most commands do without

    return read_yaml(text, os.path.basename(path))


def _json(text: str, path: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise ConfigError(
            f"{escape(path)} is not valid JSON: {escape(str(error))}.", hint="Correct this file, or fetch it again."
        ) from None


def check_fields(document: Document, where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError if a field in ``given`` is not in ``known``; the hint names the most similar known field.

    ``where`` is the name of the section that has the fields, for the message.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
            raise document.fail(f"{where} has no field {brief_repr(name)}.", hint)
