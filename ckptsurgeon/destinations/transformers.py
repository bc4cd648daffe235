"""Destinations of transformers: a ``config.json``, or ``model: {transformers: config.json, num_labels: 5, …}``.

The model is the one that ``AutoModel*.from_config`` would make, but without memory for its weights. ``from_pretrained``
opens the output folder of such a destination. https://huggingface.co/docs/transformers/main_classes/configuration
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, cast

from ..planning.target import Recognise, TargetSpec
from ._document import Document

if TYPE_CHECKING:
    from .hf.given_fields import GivenFields
    from .torch_module.opened import Opened

__all__ = ["CONFIG", "TOOLKIT"]


class _Transformers:
    field = "transformers"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): only models of transformers itself are built; custom code listed in ``auto_map`` is never run."""
        return ()

    def recognises(self, document: Document) -> bool:
        """Return whether a JSON document is a config.json of transformers."""
        content = document.content
        if not isinstance(content, dict) or not document.path.lower().endswith(".json"):
            return False
        return isinstance(content.get("model_type"), str) or isinstance(content.get("architectures"), list)

    def load(self, document: Document) -> TargetSpec:
        """Return the destination; raises ConfigError if the package is missing, or the model or a field is unknown.

        The destination is stored in the user's cache. Later the model is built again only to draw initial values.
        """
        from .hf.cached_build import cached_axes, cached_initial, cached_layouts, cached_spec, spec_key
        from .hf.given_fields import given_fields
        from .hf.growing_axes import GrowingAxes

        given = given_fields(document)
        key = spec_key(document, given)
        built = cache(partial(_built, document, given, key))
        spec = cached_spec(key, document, given)
        if spec is None:
            spec, key = built()
        lists = document.vocabulary.lists if document.vocabulary is not None else ()
        paths = [*document.read, *lists, *(one.path for one in spec.companions if one.path)]
        spec = replace(spec, config=document.path, files=tuple(dict.fromkeys(paths)), lists=lists)
        if not key:
            return spec
        initial, pieces = cached_initial(spec, lambda keys, seed: built()[0].initial(keys, seed))
        return replace(
            spec,
            cache_key=key,
            initial=initial,
            pieces=pieces,
            build=lambda: _model(document, given),
            recognise=cached_layouts(key, lambda: cast("Recognise", built()[0].recognise)),
            vocabulary=GrowingAxes(cached_axes(key, lambda: built()[0].vocabulary)),
        )


def _model(document: Document, given: GivenFields) -> object:
    """Build and return the model; unlike ``_built``, store nothing in the cache.

    If the caller builds the model on the meta device, parameters that the model ties are separate tensors.
    """
    from .hf.config import describe, library
    from .hf.model import built, offline

    with offline():
        described = describe(document, library(document), given)
    return built(described)


def _built(document: Document, given: GivenFields, key: str) -> tuple[TargetSpec, str]:
    """Build the model, and store its description as a destination in the cache under ``key``.

    Returns the destination and ``key``, or "" in place of ``key`` if nothing could be stored.
    """
    from .hf.config import describe, library
    from .hf.model import ModelFacts, construct, offline, vocabulary_of
    from .torch_module.module import module_target
    from .torch_module.opened import watched

    package = library(document)
    opened: list[Opened] = []
    with offline():
        with watched() as seen:
            described = describe(document, package, given)
        opened.append(seen)
        facts = ModelFacts(package)
        spec = module_target(
            lambda: construct(described, facts),
            kind="transformers",
            name=document.name,
            files=tuple(dict.fromkeys([*document.read, *(one.path for one in described.files if one.path)])),
            ran=(f"{described.name} of transformers {package.__version__}",),
            notes=described.notes,
            companions=described.files,
            listen=opened.append,
        )
    named = {key: info for key, info in spec.tensors.items() if key not in spec.ties}
    vocabulary = vocabulary_of(described, named)
    spec = replace(spec, vocabulary=vocabulary, **facts.fields(spec.tensors, spec.ties))
    from .hf.cached_build import keep_spec
    from .hf.stock_code import only_installed

    alone = described.is_plain and facts.is_stock and not spec.given
    alone = alone and all(not one.hosts and only_installed(one.files) for one in opened)
    known = (described.name, str(described.config.model_type))
    return spec, key if key and alone and keep_spec(key, spec, given, known) else ""


CONFIG = TOOLKIT = _Transformers()
