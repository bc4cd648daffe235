"""Destinations of transformers: a ``config.json``, or ``model: {transformers: config.json, num_labels: 5, …}``.

The model is the one that ``AutoModel*.from_config`` would make, without storage. ``from_pretrained`` opens the output
folder of such a destination. https://huggingface.co/docs/transformers/main_classes/configuration
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..planning.target import TargetSpec
from ._document import Document

__all__ = ["CONFIG", "TOOLKIT"]


class _Transformers:
    field = "transformers"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): only models of transformers itself are built; code that an ``auto_map`` names is never run."""
        return ()

    def recognises(self, document: Document) -> bool:
        """Return whether a JSON document is a config.json of transformers."""
        content = document.content
        if not isinstance(content, dict) or not document.path.lower().endswith(".json"):
            return False
        return isinstance(content.get("model_type"), str) or isinstance(content.get("architectures"), list)

    def load(self, document: Document) -> TargetSpec:
        """Return the destination; raises ConfigError if the package is missing, or the model or a field is unknown."""
        from .hf.config import describe, library
        from .hf.model import ModelFacts, construct, offline, vocabulary_of
        from .torch_module.module import module_target

        package = library(document)
        with offline():
            described = describe(document, package)
            facts = ModelFacts(package)
            lists = document.vocabulary.paths if document.vocabulary is not None else ()
            spec = module_target(
                lambda: construct(described, facts),
                kind="transformers",
                name=document.name,
                config=document.path,
                files=tuple(
                    dict.fromkeys([*document.read, *lists, *(one.path for one in described.files if one.path)])
                ),
                ran=(f"{described.name} of transformers {package.__version__}",),
                notes=described.notes,
                companions=described.files,
            )

        named = {key: info for key, info in spec.tensors.items() if key not in spec.ties}
        vocabulary = vocabulary_of(described, named)
        return replace(spec, vocabulary=vocabulary, lists=lists, **facts.fields(spec.tensors, spec.ties))


CONFIG = TOOLKIT = _Transformers()
