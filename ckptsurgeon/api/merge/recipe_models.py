"""The models of a recipe of mergekit, with the configuration and tokeniser files in their folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, SourceError
from ...methods.merge._method import Method
from ...planning.merge.differing_models import MergeOptions
from ...planning.merge.layers import layer_lists, numbered_lists
from ...planning.merge.plan import plan_merge
from ...planning.merge.tied_tensors import with_tied_heads
from ...planning.mergekit.configuration import Configuration
from ...planning.mergekit.fields import ModelReference
from ...planning.mergekit.pieces import MergeLayout, NumberedModels, pieces_of_configuration
from ...planning.plan.files import SourceView
from ...planning.plan.plan import Plan
from ...util.text import escape
from ...vocabulary.beside_model import tokens_beside
from ..inputs.argument_types import Rules
from ..inputs.encoding import ENCODINGS, as_stored
from ..inputs.inputs import names_of, plan_source, view_of
from ..inputs.metadata import with_metadata
from ..model_folder.config import layer_counts
from ..model_folder.folder import ModelFolder, model_folder_at
from ..model_folder.layers.renumbered import kinds_stated, not_by_layer, with_layers
from ..model_folder.merged import merged_folder
from ..model_folder.output import with_folder_refused
from ..model_folder.quantised import folder_of
from .request import VocabularyRequest
from .statistics import MergeStatistics
from .tokenizers import RowsRequest, different, embedded_template, tokenizer_files, wanted
from .vocabulary import InputModel, ModelTokens, known_keys

__all__ = ["RecipeModels", "found"]


def found(one: ModelReference, folder: str) -> str:
    """Return the path at which a model of a recipe exists: as it is in the recipe, or else in the folder ``folder``.

    ``folder`` is the recipe's folder. Raises ConfigError for a model with an adapter, SourceError if there is no such
    path.
    """
    for said in dict.fromkeys((one.written, one.path)):
        for path in (said, os.path.join(folder, said)):
            if os.path.exists(path) and (said == one.written or not (one.lora or one.revision)):
                return path
    if one.lora:
        raise ConfigError(
            f"{escape(one.written)} is a model with an adapter, which cannot be merged directly: first merge the "
            "adapter into the model.",
            hint=f"Run ckpt lora merge {escape(one.path)} {escape(one.lora)} -o merged/.",
        )
    path, revision = escape(one.path), escape(one.revision)
    version, then = (f" --revision {revision}", f" Then leave @{revision} out of the recipe.") if revision else ("", "")
    raise SourceError(
        f"the model {escape(one.written)} was not found: there is no such file or folder.",
        hint="Give the path of the model's folder or file. If the model is on the hub, download it first: "
        f"hf download {path}{version} --local-dir {path}.{then}",
    )


def _statistics_file(path: str, folder: str) -> str:
    """Return the path of a file with statistics: relative to the working directory, or else to the recipe's folder.

    Raises SourceError if there is no such file.
    """
    found = next((one for one in (path, os.path.join(folder, path)) if os.path.exists(one)), None)
    if found is None:
        raise SourceError(f"the statistics {escape(path)} were not found.", hint="Make the statistics with ckpt stats.")
    return found


class RecipeModels:
    """The open models of a recipe, with the configuration and tokeniser files in their folders."""

    def __init__(
        self,
        configuration: Configuration,
        folder: str,
        paths: Mapping[ModelReference, str],
        opened: Sequence[Checkpoint],
        notes: Sequence[str] = (),
        encoding: str = ENCODINGS[0],
        operations: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self._configuration, self._folder = configuration, folder
        self.names = names_of(list(paths.values()))
        made = operations or {}
        self._views = [
            view_of(plan_source(name, one, operations=made.get(index, ())), one)
            for index, (name, one) in enumerate(zip(self.names, opened, strict=True))
        ]
        stored = as_stored(opened, encoding)
        self.folders = [folder_of(one) for one in stored]
        self._paths = list(paths.values())
        self._numbers = {one: number for number, one in enumerate(paths)}
        self._metadata = stored[self.donor].metadata
        self._notes = notes
        self.statistics = MergeStatistics()

    @property
    def donor(self) -> int:
        """The index of the model whose configuration and files the output gets."""
        base = self._configuration.base
        return self._numbers[base] if base is not None else 0

    @property
    def models(self) -> list[InputModel]:
        """The models, each with its path, tensors and folder."""
        return list(map(InputModel, self._paths, self._views, self.folders))

    def vocabulary(self, asked: VocabularyRequest, method: Method) -> VocabularyRequest:
        """Return the vocabulary that the recipe requests if rows must be merged by token; otherwise return ``asked``.

        ``asked`` is the vocabulary that the user's arguments request. Raises ConfigError if the two contradict each
        other.
        """
        tokenizer = self._configuration.tokenizer
        if tokenizer is None or (asked.vocab is not None and not tokenizer.is_detailed):
            return asked
        if asked.vocab is not None:
            raise ConfigError(
                "--vocab and the field tokenizer of the recipe contradict each other.", hint="Leave one of them out."
            )
        other = wanted(self._configuration, self.folders[self.donor], self._find)
        keys = asked.keys or known_keys(self.models)
        if not (tokenizer.is_detailed or different(self.folders, self.names, self.donor, other)) and (
            not keys or all(one.has_a_row_for_each_token for one in self.folders)
        ):
            return asked
        return replace(
            asked,
            vocab=tokenizer.source if isinstance(tokenizer.source, str) else tokens_beside(other.path),
            keys=keys,
            rows=RowsRequest(tokenizer.tokens, self._numbers, tokenizer.multiple, self._lender(method)),
        )

    def _lender(self, method: Method) -> int | None:
        """Return the index of the base if tokens that a model lacks get the base's embedding row; None if they do not.

        As in mergekit, they do if the method itself uses no base, but the recipe has a base, and this base is one of
        the models of every slice of the output.
        """
        base = self._configuration.base
        slices = [part for module in self._configuration.modules for part in module.slices]
        everywhere = all(any(one.model == base for one in part.sources) for part in slices)
        return self._numbers[base] if base is not None and method.base == "none" and everywhere else None

    def plan(
        self,
        method: Method,
        options: MergeOptions,
        tokens: ModelTokens | None,
        seed: int,
        arguments: Mapping[str, Any],
        statistics: Callable[[Sequence[int], Sequence[SourceView]], MergeStatistics],
    ) -> Plan:
        """Return the plan of the merge, with the configuration and tokeniser for an output folder.

        ``tokens`` are the token lists of the models and of the output; None if rows are not merged by token.
        ``arguments`` are recorded in the recipe of the output. ``statistics`` is a function that opens the statistics
        of the models with the given indices; the result is stored in ``self.statistics``.
        """
        counts = [layer_counts(one.config) for one in self.folders]
        layout = pieces_of_configuration(
            self._configuration, NumberedModels(self._views, self._numbers, counts), method
        )
        tied = {number for number, one in enumerate(self.folders) if one.is_tied}
        files, said = tokenizer_files(self._configuration, self.folders, self.donor, self._find)
        measured = [
            place
            for piece in layout.pieces
            for place in ((piece.base,) if method.measures_base else piece.models)
            if place is not None
        ]
        merged = sorted({place.source for place in measured})
        self.statistics = statistics(merged, self._views)
        plan = plan_merge(
            [*self._views, *self.statistics.views],
            list(with_tied_heads(layout.pieces, self._views, tied)),
            replace(options, statistics=self.statistics.by_model),
            seed=seed,
            arguments=arguments,
            metadata=self._metadata,
            notes=[*self._notes, *layout.notes, *said, *self.statistics.notes],
        )
        config, more, faults = self._config(layout)
        plan = with_folder_refused(replace(plan, notes=(*plan.notes, *more)), faults)
        if template := embedded_template(self._configuration, self.folders, self.donor):
            plan = with_metadata(plan, template)
        return merged_folder(plan, self.folders[self.donor], self.folders, config=config, files=files, tokens=tokens)

    def given_statistics(self, asked: Rules) -> Rules:
        """Return the statistics of the models by name: those in the recipe, or those in the arguments (``asked``).

        Raises ConfigError if both have statistics, SourceError for a file of the recipe that does not exist.
        """
        written = self._configuration.statistics
        if written and asked:
            raise ConfigError("both --statistics and the recipe name files with statistics.", hint="Leave one out.")
        if not written:
            return asked
        return {self.names[self._numbers[one]]: _statistics_file(path, self._folder) for one, path in written.items()}

    def _find(self, one: ModelReference) -> ModelFolder:
        number = self._numbers.get(one)
        return self.folders[number] if number is not None else model_folder_at(found(one, self._folder))

    def _config(self, layout: MergeLayout) -> tuple[Mapping[str, Any], list[str], list[str]]:
        """Return (configuration for the output, notes, faults).

        The configuration is that of the donor, changed for the new list of layers. Each fault names a property of these
        layers that no field of config.json can express.
        """
        folder, notes, faults = self.folders[self.donor], list[str](), list[str]()
        config: Mapping[str, Any] = folder.config
        for one in layout.stacks if config else ():
            view = self._views[self.donor]
            old = next(
                (found for found in numbered_lists(view.tensors) if found.prefix == one.layers.prefix), one.layers
            )
            origins = [(self.folders[number].config, layer) for number, layer in one.origins]
            numbers = [layer for _, layer in one.origins]
            if numbers != list(range(old.count)):
                alike = {each.layers.prefix for each in layout.stacks if len(each.origins) == len(numbers)}
                others = [each for each in layer_lists(view.tensors, layer_counts(config)) if each.prefix not in alike]
                why = list(not_by_layer(config, old, others, 0, is_moved=numbers != list(range(len(numbers)))))
                certain = [reason for reason in why if reason.is_certain and len(numbers) != old.count]
                faults += (f"its {reason.said}" for reason in certain)
                notes += (
                    f"config.json is changed, but a field could not be adapted: {reason.said}"
                    for reason in why
                    if reason not in certain
                )
            made = with_layers(config, old, origins)
            config, notes = made.fields, [*notes, *kinds_stated(made)]
            faults += made.faults
            if not made.is_counted:
                what = f"the number of {one.layers.prefix}"
                notes.append(f"config.json has no field for {what}, which is now {len(origins)}")
        return config, notes, faults

    def said(self, document: Any) -> Any:
        """Return the recipe ``document`` with names of models instead of paths: outputs never contain local paths."""
        names = {one.written: self.names[number] for one, number in self._numbers.items()}
        if isinstance(document, dict):
            return {str(key): self.said(value) for key, value in document.items()}
        if isinstance(document, list):
            return [self.said(one) for one in document]
        return names.get(document, document) if isinstance(document, str) else document
