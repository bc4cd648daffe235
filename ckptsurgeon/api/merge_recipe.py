"""``merge`` of a recipe that mergekit would read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import ConfigError, SourceError
from ..keys import quoted
from ..mergekit import Configuration, Layout, Models, Reference, pieces_of_configuration, read_configuration
from ..merges import Method
from ..plan import Plan
from ..planners import MergeOptions, SourceView, numbered_lists, plan_merge, vocabulary_keys, with_tied_heads
from ..text import escape
from ..vocabulary import tokens_beside
from ..yamltext import read_yaml
from .inputs import OpenInputs, names_of, plan_source
from .memory import with_costs
from .merge_vocabulary import ModelTokens, VocabularyAsked, merge_vocabulary
from .merged_folder import with_folder
from .model_config import layer_counts, with_layers
from .model_folders import ModelFolder, model_folder
from .tokenizers import different, tokenizer_files, wanted

__all__ = ["Request", "is_recipe", "plan_configuration", "read_recipe"]


def is_recipe(path: str) -> bool:
    """Whether a path is that of a recipe."""
    return path.lower().endswith((".yaml", ".yml"))


def read_recipe(path: str) -> dict[str, Any]:
    """Return the document in a file; raises SourceError or ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            document = read_yaml(file.read(), os.path.basename(path))
    except OSError as error:
        raise SourceError(f"the recipe {escape(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{escape(path)} is no recipe: it is no UTF-8.") from None
    if isinstance(document, dict) and "verb" in document:
        raise ConfigError(f"{escape(path)} is a recipe of ours.", hint=f"Run ckpt apply {escape(path)}.")
    if not isinstance(document, dict) or "merge_method" not in document:
        raise ConfigError(
            f"{escape(path)} names no merge_method.", hint="Write one as mergekit reads it: merge_method, models, …"
        )
    return document


@dataclass(frozen=True)
class Request:
    """What a merge was asked for beside models, method and parameters; ``arguments`` are that as it is recorded."""

    options: MergeOptions
    vocabulary: VocabularyAsked
    arguments: Mapping[str, Any]
    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = 0
    unwrap: bool = False
    root: str | None = None

    def opened(self, paths: Sequence[str], stack: ExitStack) -> list[Checkpoint]:
        """Open models; the stack closes them."""
        return [stack.enter_context(open_checkpoint(one, self.root, unwrap=self.unwrap)) for one in paths]

    def carried(self, plan: Plan, opened: Sequence[Checkpoint], *others: str) -> Plan:
        """Return a plan with what it costs, what it keeps open, and the files that must not be written."""
        inputs = OpenInputs(tuple(opened), None, others, plugins=self.plugins, memory=self.memory)
        return with_costs(replace(plan, inputs=inputs), self.memory, self.plugins)


def plan_configuration(path: str, document: Mapping[str, Any], method: Method, asked: Request) -> Plan:
    """Plan what the document of a recipe at ``path`` asks for; its paths are seen from here, else from there.

    Raises ConfigError with the field that is wrong, PlanError for what the models cannot give.
    """
    folder = os.path.dirname(path)
    try:
        configuration = read_configuration(document)
        options = asked.options.or_dtype(configuration.dtype)
        references = configuration.references
        paths = [_found(one, folder) for one in references]
        with ExitStack() as stack:
            opened = asked.opened(paths, stack)
            merged = _Merged(configuration, folder, dict(zip(references, paths, strict=True)), opened)
            names = merged.names
            chosen = merge_vocabulary(merged.vocabulary(asked.vocabulary), paths, names, first=merged.donor)
            options = replace(options, vocabulary=chosen[0] if chosen is not None else None)
            tokens = chosen[1] if chosen is not None else None
            arguments = {**asked.arguments, "recipe": merged.said(document)}
            plan = merged.plan(method, options, tokens, asked.seed, arguments)
            stack.pop_all()
    except ConfigError as error:
        raise type(error)(f"{escape(os.path.basename(path))}: {error.message}", hint=error.hint) from error
    return asked.carried(plan, opened, path)


def _found(one: Reference, folder: str) -> str:
    """Return where a model lies; raises ConfigError for an adapter, SourceError where there is nothing."""
    for said in dict.fromkeys((one.said, one.path)):
        for path in (said, os.path.join(folder, said)):
            if os.path.exists(path) and (said == one.said or not (one.lora or one.revision)):
                return path
    if one.lora:
        raise ConfigError(
            f"{escape(one.said)} is a model and an adapter.",
            hint=f"Merge them first: ckpt lora merge {escape(one.path)} {escape(one.lora)} -o merged/.",
        )
    raise SourceError(
        f"there is no model {escape(one.said)} here.",
        hint="Give the path of its folder or file; one of the hub has to be downloaded before: "
        f"hf download {escape(one.path)} --local-dir {escape(one.path)}.",
    )


class _Merged:
    """The models of a configuration, opened, with what lies beside them."""

    def __init__(
        self, configuration: Configuration, folder: str, paths: Mapping[Reference, str], opened: Sequence[Checkpoint]
    ) -> None:
        self._configuration, self._folder = configuration, folder
        self.names = names_of(list(paths.values()))
        self._views = [SourceView(plan_source(name, one), one) for name, one in zip(self.names, opened, strict=True)]
        self._folders = [model_folder(path) for path in paths.values()]
        self._numbers = {one: number for number, one in enumerate(paths)}
        self._metadata = opened[self.donor].metadata
        self._notes = [note for one in opened for note in one.notes]

    @property
    def donor(self) -> int:
        """The number of the model whose configuration and files the output has."""
        base = self._configuration.base
        return self._numbers[base] if base is not None else 0

    def vocabulary(self, asked: VocabularyAsked) -> VocabularyAsked:
        """Return the vocabulary that the output is to have: as the recipe says, where rows have to go by token."""
        tokenizer = self._configuration.tokenizer
        if asked.vocab is not None or tokenizer is None or tokenizer.tokens or tokenizer.padded:
            return asked
        other = wanted(self._configuration, self._folders[self.donor], self._folder_of)
        if not different(self._folders, self.names, self.donor, other):
            return asked
        keys = dict.fromkeys(key for view in self._views for key in vocabulary_keys(view.tensors))
        return replace(
            asked,
            vocab=tokenizer.source if isinstance(tokenizer.source, str) else tokens_beside(other.path),
            keys=asked.keys or [f"{quoted(key)}=0" for key in keys],
        )

    def plan(
        self,
        method: Method,
        options: MergeOptions,
        tokens: ModelTokens | None,
        seed: int,
        arguments: Mapping[str, Any],
    ) -> Plan:
        """Return the plan with everything that goes beside the weights."""
        counts = [layer_counts(one.config) for one in self._folders]
        layout = pieces_of_configuration(self._configuration, Models(self._views, self._numbers, counts), method)
        tied = {number for number, one in enumerate(self._folders) if one.is_tied}
        files, said = tokenizer_files(
            self._configuration, self._folders, self.names, self.donor, self._folder_of, by_token=tokens is not None
        )
        plan = plan_merge(
            self._views,
            list(with_tied_heads(layout.pieces, self._views, tied)),
            options,
            seed=seed,
            arguments=arguments,
            metadata=self._metadata,
            notes=[*self._notes, *layout.notes, *said],
        )
        config, more = self._config(layout)
        plan = replace(plan, notes=(*plan.notes, *more))
        return with_folder(plan, self._folders[self.donor], self._folders, config=config, files=files, tokens=tokens)

    def _folder_of(self, one: Reference) -> ModelFolder:
        number = self._numbers.get(one)
        return self._folders[number] if number is not None else model_folder(_found(one, self._folder))

    def _config(self, layout: Layout) -> tuple[Mapping[str, Any], list[str]]:
        """Return the donor's configuration with the layers that were stacked."""
        folder, notes = self._folders[self.donor], []
        config: Mapping[str, Any] = folder.config
        for one in layout.stacks if config else ():
            view = self._views[self.donor]
            old = next(
                (found for found in numbered_lists(view.tensors) if found.prefix == one.layers.prefix), one.layers
            )
            origins = [(self._folders[number].config, layer) for number, layer in one.origins]
            config, said = with_layers(config, old, origins)
            if not said:
                notes.append(f"config.json does not say how many {one.layers.prefix} there are: {len(origins)} now")
        return config, notes

    def said(self, document: Any) -> Any:
        """Return a document whose models go by their names, as a recipe is recorded: no path leaves this machine."""
        names = {one.said: self.names[number] for one, number in self._numbers.items()}
        if isinstance(document, dict):
            return {str(key): self.said(value) for key, value in document.items()}
        if isinstance(document, list):
            return [self.said(one) for one in document]
        return names.get(document, document) if isinstance(document, str) else document
