"""Reads a document that describes a model of transformers: configuration fields, overrides, the model's class."""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, UnsafeError
from ...planning.target import Companion
from ...util.text import brief_repr, escape
from .._document import Document
from .files import companions, is_of_tokenizer
from .given_fields import GivenFields
from .module_counts import too_many_modules
from .overrides import check_overrides, config_of, merged_fields
from .processors import processor_files
from .written_files import WrittenConfig, files_of, has_fewer_rows, size_of

__all__ = ["VALIDATOR", "ModelDescription", "class_of_config", "describe", "library"]

OLDEST = 5
"""The oldest major version of transformers that is supported."""


@dataclass(frozen=True)
class ModelDescription:
    """A model of transformers: its class, its configuration, and the files that go next to its weights.

    ``is_plain`` is true if the config.json depends only on the fields of the document, and all other files are copies.
    """

    model_class: Any
    config: Any
    files: tuple[Companion, ...] = ()
    notes: tuple[str, ...] = ()
    is_plain: bool = False

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return str(self.model_class.__name__)


def library(document: Document) -> Any:
    """Return the package transformers; raises ConfigError if it is missing or too old."""
    try:
        found = importlib.import_module("transformers")
        importlib.import_module("transformers.conversion_mapping")
    except ImportError as error:
        old = getattr(sys.modules.get("transformers"), "__version__", "")
        needed = f"the package transformers {OLDEST} or newer" if old else "the package transformers"
        why = f"; {old} is installed" if old else ""
        if not old and error.name not in (None, "transformers"):
            why = f" ({escape(str(error))})"
        raise document.fail(
            f"to build this destination, {needed} is needed{why}.", "Run pip install 'ckptsurgeon[hf]'."
        ) from error
    return found


def describe(document: Document, package: Any, given: GivenFields) -> ModelDescription:
    """Return the model that a document describes: a config.json, or a file in our format that refers to a config.json.

    ``given`` are the fields that ``given_fields`` read.

    Raises ConfigError if transformers does not know the model, a field is wrong, or the model is quantised. Raises
    UnsafeError if a field asks for so many modules that building them would take all memory.
    """
    fields, folder, where, overrides = given
    _check_counts(document, given)
    config_class = class_of_config(document, package, fields)
    check_overrides(document, config_class, fields, overrides)
    name, notes = _architecture(document, package, config_class, fields)
    model_class = getattr(package, name)
    if fields.get("quantization_config") is not None:
        raise document.fail(
            "the configuration has a quantization_config, from which no quantised model can be built.",
            "Name the folder of the quantised model as the destination, or remove the quantization_config and quantise "
            "the output.",
        )
    merged = merged_fields(config_class, fields, overrides)
    is_new = document.vocabulary is not None or size_of(config_class, merged) < size_of(config_class, fields)
    try:
        with _without_warning_of_ids() if is_new else nullcontext():
            config = config_of(config_class, merged)
    except Exception as error:
        why = " ".join(str(error).split()).removesuffix(".")
        fault = document.fail(f"the class {config_class.__name__} refuses the fields of {where}: {escape(why, 400)}.")
        fault.rule = VALIDATOR if _is_of_validator(error, why) else ""
        raise fault from error
    config.architectures = [name]
    written = WrittenConfig(config, fields, overrides)
    more, others = processor_files(document, written, name, companions(folder))
    made = [one for one in more if is_of_tokenizer(one.name)]
    files, said = files_of(document, written, fields, folder, made)
    if made:  # this tokeniser replaces that of the folder
        files = tuple(one for one in files if not is_of_tokenizer(one.name))
    is_plain = document.vocabulary is None and not (more or said or others or has_fewer_rows(written, fields))
    return ModelDescription(model_class, config, (*files, *more), (*notes, *said, *others), is_plain)


def _check_counts(document: Document, given: GivenFields) -> None:
    """Raise UnsafeError if the fields, or the overrides of the destination, ask for too many modules."""
    for fields, where in ((given.fields, given.where), (given.overrides, document.name)):
        many = too_many_modules(fields)
        if many:
            raise UnsafeError(
                f"{escape(where)}: {escape(many, 300)}: a network of so many modules is not built.",
                hint="Correct the field; if the file is from elsewhere, do not trust it.",
                rule="modules",
            )


_ID_BEYOND = "an integer within the vocabulary"
"""A part of the warning of transformers for a token id that is not below the vocabulary size."""


@contextmanager
def _without_warning_of_ids() -> Iterator[None]:
    """During the block, keep transformers from warning of token ids that the vocabulary does not have.

    A configuration with a new vocabulary is first built with the old token ids; ``files_of`` changes them later.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return _ID_BEYOND not in record.getMessage()

    logger = logging.getLogger("transformers.configuration_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


VALIDATOR = "validator"
"""The rule of the error for fields that a check of the installed version refuses: other versions may accept them."""
_TEXT_FOR_NUMBER = re.compile(r"expected (?:int|float), got (?:str|list|dict)")
"""Matches errors about values with which no version can compute, such as a string in place of a number."""


def _is_of_validator(error: Exception, why: str) -> bool:
    """Return whether ``error`` comes from the check of fields in transformers 5, which other versions lack.

    transformers 5 checks the types and values of fields (``huggingface_hub.dataclasses.strict``); transformers 4 did
    not. ``why`` is the message. Returns False if it shows a value that no version accepts, such as a string for a
    number.
    """
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError) and _TEXT_FOR_NUMBER.search(why) is None


def class_of_config(document: Document, package: Any, fields: Mapping[str, Any]) -> Any:
    """Return the configuration class of the ``model_type``, or of the architecture if the fields have no model_type.

    Raises ConfigError if transformers has no such class.
    """
    known = package.CONFIG_MAPPING
    kind = fields.get("model_type")
    if kind is None:
        name, _ = _architecture(document, package, None, fields)
        return getattr(package, name).config_class
    if isinstance(kind, str) and kind in known:
        return known[kind]
    if "auto_map" in fields:
        raise _remote(document, f"the model_type {brief_repr(kind, 60)}")
    near = difflib.get_close_matches(str(kind), list(known.keys()), n=3)
    raise document.fail(
        f"transformers {package.__version__} has no model_type {brief_repr(kind, 60)}.",
        f"Did you mean {', '.join(near)}?" if near else "A newer version of transformers may have it.",
    )


def _remote(document: Document, what: str) -> ConfigError:
    return document.fail(
        f"{what} needs the custom code listed in auto_map, and code listed in a configuration is never run.",
        "If you trust this code, write a configuration that imports it: model: {_target_: package.function}.",
    )


def _architecture(
    document: Document, package: Any, config_class: Any, fields: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Return the name of the model's class, and notes.

    The class is the one in the document, else the one in the config.json, else the one that AutoModel chooses. If the
    class in the config.json belongs to another model_type than the configuration, it is replaced by the class with the
    same purpose, such as masked language modelling, for the configuration's model_type. Raises ConfigError if
    transformers does not have the class, or if the class belongs to another model_type and cannot be replaced.
    """
    listed = fields.get("architectures") or []
    asked = document.model.get("architecture")
    name = asked if asked is not None else next(iter(listed), None) if isinstance(listed, list) else listed
    if name is None:
        return _automatic(document, package, config_class), ()
    found = getattr(package, name, None) if isinstance(name, str) and not name.startswith("_") else None
    is_model = isinstance(found, type) and issubclass(found, package.PreTrainedModel)
    if not is_model:
        if asked is None and "auto_map" in fields:
            raise _remote(document, escape(str(name)))
        near = difflib.get_close_matches(str(name), _models(package), n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "A newer version of transformers may have it."
        raise document.fail(f"transformers {package.__version__} has no model class {brief_repr(name, 60)}.", hint)
    wanted = getattr(found, "config_class", None)
    if config_class is not None and wanted is not None and not issubclass(config_class, wanted):
        own = "" if asked is not None or "auto_map" in fields else _class_instead(package, name, config_class)
        if own:
            said = f"{escape(own)} is built, the class of the model_type {escape(config_class.model_type)}"
            return own, (f"{said}, and not {escape(name)} (architectures), as transformers' Auto classes do",)
        raise document.fail(
            f"the class {name} belongs to the model_type {wanted.model_type or wanted.__name__}, "
            f"not to {config_class.model_type}.",
            _part(config_class, wanted),
        )
    notes = ("the custom code listed in auto_map is not run: transformers itself contains the model",)
    return str(name), notes if "auto_map" in fields else ()


_PRETRAINING, _PRETRAINED = "PRETRAINING", "ForPreTraining"
"""A part of the name of the list of pretraining classes in transformers, and the ending of the names of its classes."""


def _class_instead(package: Any, name: str, config_class: Any) -> str:
    """Return the name of the model class for ``config_class`` that has the same purpose as the class ``name``.

    ``name`` belongs to another model type. Two classes have the same purpose if one list of the Auto classes of
    transformers has both, such as the list of AutoModelForCausalLM. The list for pretraining has classes of every
    purpose, so it is used only if ``name`` is a class for pretraining. Returns '' if no list has both, and for the
    class of a part of the model (see ``_part``).
    """
    if _part(config_class, getattr(package, name).config_class):
        return ""
    lists = vars(importlib.import_module("transformers.models.auto.modeling_auto"))
    names = [
        one for one in lists if one.endswith("_MAPPING_NAMES") and (_PRETRAINED in name or _PRETRAINING not in one)
    ]
    for classes in (lists[one] for one in names):
        found = classes.get(config_class.model_type)
        if found and any(name == one if isinstance(one, str) else name in one for one in classes.values()):
            return str(found if isinstance(found, str) else found[0])
    return ""


def _part(config_class: Any, wanted: Any) -> str:
    """Return the hint for a model class that needs only one part of a configuration, '' for other classes.

    ``config_class`` is the class of the whole configuration, ``wanted`` the class that the model class needs. For
    example, CLIPVisionModelWithProjection needs only the field ``vision_config`` of CLIP's configuration.
    """
    parts = getattr(config_class, "sub_configs", None) or {}
    field = next((name for name, part in parts.items() if part is wanted), None)
    if field is None:
        return ""
    return (
        f"This class uses {field} alone. Write the fields of {field} into a separate config.json, with model_type "
        f"{wanted.model_type}, and add fields of the whole model that it needs, such as projection_dim."
    )


def _models(package: Any) -> list[str]:
    """Return all names in transformers that look like model classes, for suggestions; a few are not model classes."""
    return [name for name in dir(package) if name[:1].isupper() and ("For" in name or name.endswith("Model"))]


def _automatic(document: Document, package: Any, config_class: Any) -> str:
    """Return the name of the class that AutoModel chooses for a configuration.

    Raises ConfigError if there is none.
    """
    try:
        found = package.AutoModel._model_mapping[config_class]
    except KeyError:
        raise document.fail(
            f"AutoModel has no class for the model_type {config_class.model_type}.",
            "Name the class: architecture: CLASS.",
        ) from None
    return str((found[0] if isinstance(found, tuple) else found).__name__)
