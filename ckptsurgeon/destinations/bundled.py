"""Destinations whose model comes with ckptsurgeon: ``model: {name: hybrid_asr, …}``.

Each model is a file in the folder ``trainer/models``, which declares the fields of its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from ..errors import UnsafeError
from ..planning.target import Companion, TargetSpec
from ..util.registry import discover, module_names
from ..util.text import brief_repr, escape
from ._document import Document, check_fields
from .hf.module_counts import too_many_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CONFIG", "defaults_of"]

MODELS = "ckptsurgeon.trainer.models"


class _Model(Protocol):
    """A bundled model: the fields of its configuration with their defaults, and the function that builds it.

    The fields listed in ``files`` are paths of text files; ``build`` gets the content of these files instead of the
    paths. ``vocabulary`` maps keys to the axis that has one row for each token. ``layers`` returns the names of modules
    in the order of computation, the output layer last. ``companions`` returns the files that the toolkit of the model
    stores in the same folder as its weights.
    """

    fields: ClassVar[dict[str, Any]]
    files: tuple[str, ...]
    vocabulary: ClassVar[dict[str, int]]

    def layers(self, fields: dict[str, Any]) -> tuple[str, ...]: ...

    def companions(self, fields: dict[str, Any]) -> tuple[Companion, ...]: ...

    def build(self, fields: dict[str, Any]) -> nn.Module: ...


def defaults_of(document: Document) -> dict[str, Any]:
    """Return the fields of the bundled model that a document names, with their defaults; {} if it names none."""
    name = str(document.model.get("name"))
    if name not in module_names(MODELS):
        return {}
    return dict(cast("_Model", discover(MODELS, "MODEL")[name]).fields)


class _Bundled:
    field = "name"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): a bundled model runs no code of the user."""
        return ()

    def load(self, document: Document) -> TargetSpec:
        """Build the model without memory for its weights.

        Raises ConfigError for an unknown name or field, and UnsafeError for a number that asks for too many modules.
        """
        name = document.model["name"]
        known = module_names(MODELS)
        if name not in known:
            raise document.fail(f"there is no bundled model {brief_repr(name)}.", f"Use one of {', '.join(known)}.")
        from .torch_module.module import module_target

        model = cast("_Model", discover(MODELS, "MODEL")[name])
        given = {key: value for key, value in document.model.items() if key != "name"}
        check_fields(document, f"model {name}", given, model.fields)
        fields = {**model.fields, **given}
        if found := too_many_modules(fields):
            raise UnsafeError(
                f"{escape(document.name)} asks for too many modules: {found}.",
                hint="Correct this number; if the file is from elsewhere, do not trust it.",
                rule="modules",
            )
        for file in model.files:
            if fields[file] is not None:
                fields[file] = document.text_file(fields[file], file)
        target = module_target(
            lambda: model.build(fields),
            kind="bundled",
            name=document.name,
            config=document.path,
            files=tuple(document.read),
            vocabulary=model.vocabulary,
        )
        # after building, which checks the fields
        return replace(target, layers=model.layers(fields), companions=model.companions(fields))


CONFIG = _Bundled()
