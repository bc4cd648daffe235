"""The statistics of the models of a merge: files that ``ckpt stats`` wrote, each checked to belong to its model."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...methods.merge._method import Method
from ...planning.merge.statistics import NAMES, ModelStatistics
from ...planning.plan.compute import GRAM
from ...planning.plan.files import SourceView
from ...util.text import count, escape, listing
from ..inputs.argument_types import Rules
from ..inputs.inputs import names_of, plan_source, view_of

__all__ = ["ROLE", "MergeStatistics", "opened_statistics"]

ROLE = "statistics"
"""The role of a file with statistics among the sources of a plan."""


@dataclass(frozen=True)
class MergeStatistics:
    """The open files with the statistics of the models to merge, in the order of the models.

    ``views`` describe these files in the form that planners read. ``by_model`` maps the index of each model to its
    statistics. ``notes`` name statistics that were made from too few inputs, or from random ones.
    """

    opened: Sequence[Checkpoint] = ()
    views: Sequence[SourceView] = ()
    by_model: Mapping[int, ModelStatistics] = field(default_factory=dict)
    notes: Sequence[str] = ()


def opened_statistics(
    given: Rules,
    method: Method,
    models: Mapping[int, Checkpoint],
    views: Sequence[SourceView],
    stack: ExitStack,
    *,
    paths: Sequence[str] = (),
) -> MergeStatistics:
    """Open the statistics that a merge method needs of each model; ``stack`` closes them.

    ``given`` is the argument ``statistics``: strings MODEL=FILE, or a map. ``models`` maps the index of each merged
    model in ``views`` to the open model. MODEL is the name of a model in ``views``, or its path in ``paths``. Raises
    ConfigError if statistics are missing, superfluous, or of another model.
    """
    if not method.statistics:
        if given:
            raise ConfigError(
                f"--statistics has no effect: the method {method.name} uses no statistics.", hint="Leave it out."
            )
        return MergeStatistics()
    from ..statistics.stored import MERGED, check_belongs, random_notes, said_in, said_of_merged  # few methods use them

    if method.merged_inputs and (alone := _texts(given)) and len(alone) == 1 and not isinstance(given, Mapping):
        given = {views[one].source.name: alone[0] for one in models} if os.path.exists(alone[0]) else given
    files = _files(given, models, views, paths)
    _check_all(files, method, models, views)
    names = names_of([*(view.source.path or view.source.name for view in views), *files.values()])[len(views) :]
    found: dict[int, ModelStatistics] = {}
    opened, more, notes = list[Checkpoint](), list[SourceView](), list[str]()
    for (model, path), name in zip(files.items(), names, strict=True):
        checkpoint = stack.enter_context(open_checkpoint(path, unwrap=False, called="statistics"))
        said = said_in(checkpoint)
        if models[model].in_memory:
            raise ConfigError(
                f"the model {escape(views[model].source.name)} is in memory, but statistics can only be used for a "
                "model in a file.",
                hint="Write the model to a file, and give its path.",
            )
        own, place = models[model].stored or models[model], None
        if method.merged_inputs:
            merged = said
            place, said = said_of_merged(said, checkpoint.path, own)
            given_there = _of_merge(merged[MERGED], place, len(models), checkpoint.path)
        else:
            _check_not_merged(MERGED in said, method, checkpoint.path)
            check_belongs(said, checkpoint.path, own, method.statistics)
            given_there = {}
        made = _statistics(method, said, checkpoint, views[model], len(views) + len(opened), place=place)
        few, without = _few(said, checkpoint, made)
        found[model] = replace(made, merged=given_there, few=frozenset(few))
        notes += random_notes(said, name)
        notes += _notes_of_few([key for key in few if key not in without], without, name)
        opened.append(checkpoint)
        more.append(view_of(plan_source(name, checkpoint, ROLE), checkpoint))
    return MergeStatistics(opened, more, found, notes)


def _of_merge(merged: Mapping[str, Any], place: int, models: int, name: str) -> dict[str, float]:
    """Return the parameters with which the model at ``place`` was merged while its statistics were collected.

    The parameter ``weight`` is divided by the sum of all models' weights. Raises ConfigError unless ``models`` models
    were merged, or if the record ``merged`` is damaged.
    """
    if len(merged["models"]) != models:
        raise ConfigError(
            f"{escape(name)} has statistics of a merge of {count(len(merged['models']), 'model')}, not of {models}.",
            hint="Merge the models of the statistics, or make statistics of these models.",
        )
    try:
        given = merged["parameters"]
        weights = [float(one) for one in given["weight"]]
        return {
            "weight": weights[place] / sum(weights), "alpha": float(given["alpha"]), "ridge": float(given["ridge"])
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(
            f"in {escape(name)}, the record of the merge whose statistics were collected is damaged.",
            hint="Make this file again: ckpt stats MODEL --gram --merged-with OTHER=INPUTS.",
        ) from error


def _check_not_merged(is_merged: bool, method: Method, name: str) -> None:
    if is_merged:
        raise ConfigError(
            f"{escape(name)} has statistics of the inputs of layers in a merged model, which the method "
            f"{method.name} does not use.",
            hint="Use --method regmean_plusplus, or make the statistics without --merged-with.",
        )


def _files(
    given: Rules, models: Mapping[int, Checkpoint], views: Sequence[SourceView], paths: Sequence[str]
) -> dict[int, str]:
    """Return {index of a model: path of its statistics}, from ``given``; ``paths`` are the paths of the models.

    The arguments are those of ``opened_statistics``. Raises ConfigError for an unknown model, and for a model with two
    files.
    """
    names = {views[number].source.name: number for number in models}
    for place, path in enumerate(paths):
        if place in models:
            names.setdefault(path.rstrip("/"), place)
    pairs = given.items() if isinstance(given, Mapping) else [_pair(text, names) for text in _texts(given)]
    found: dict[int, str] = {}
    for model, path in pairs:
        number = names.get(model.rstrip("/"))
        if number is None:
            known = ", ".join(escape(views[one].source.name) for one in models)
            what = "one of the models" if len(models) > 1 else "the model with statistics"
            raise ConfigError(f"--statistics: {escape(model)} is not {what}.", hint=f"Use one of {known}.")
        if number in found:
            raise ConfigError(f"--statistics has two files for the model {escape(model)}.", hint="Leave one out.")
        found[number] = os.fspath(path)
    for place in models:  # the same model may be there twice
        same = [one for one in found if paths and paths[one] == paths[place]]
        if place not in found and same:
            found[place] = found[same[0]]
    return {number: found[number] for number in models if number in found}


def _texts(given: Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _pair(text: str, known: Collection[str]) -> tuple[str, str]:
    """Return MODEL and FILE of a string MODEL=FILE, which may have several "=".

    It is split at the "=" after one of the ``known`` models or, if there is none, at the first "=". Raises ConfigError
    if MODEL or FILE is missing.
    """
    places = [at for at, char in enumerate(text) if char == "="]
    cuts = [(text[:at], text[at + 1 :]) for at in places if at and text[at + 1 :]]
    if not cuts:
        raise ConfigError(
            f"--statistics {escape(text)} does not have the form MODEL=FILE.", hint="Write --statistics MODEL=FILE."
        )
    return next((cut for cut in cuts if cut[0].rstrip("/") in known), cuts[0])


def _check_all(
    files: Mapping[int, str], method: Method, models: Mapping[int, Checkpoint], views: Sequence[SourceView]
) -> None:
    """Raise ConfigError if a model has no statistics."""
    lacking = [escape(views[number].source.name) for number in models if number not in files]
    if lacking:
        raise ConfigError(
            f"the method {method.name} needs statistics of {'the base' if method.measures_base else 'each model'}, but "
            f"{listing(lacking, where='')} {'has' if len(lacking) == 1 else 'have'} none.",
            hint=_how_to_make(method, [escape(views[number].source.name) for number in models], lacking[0]),
        )


def _how_to_make(method: Method, models: Sequence[str], lacking: str) -> str:
    """Return the commands that make the statistics of ``lacking``, one of the ``models``, and use them."""
    if method.merged_inputs:  # one file for all models
        others = "".join(f" --merged-with {name}=FILE" for name in models[1:])
        made = f"ckpt stats {models[0]} --inputs FILE --gram{others} -o stats.safetensors"
        return f"Make them with {made}, and give them with --statistics stats.safetensors."
    made = f"ckpt stats {lacking} --inputs FILE --{method.statistics} -o stats.safetensors"
    return f"Make them with {made}, and give them with --statistics {lacking}=stats.safetensors."


def _statistics(
    method: Method, said: Mapping[str, Any], file: Checkpoint, view: SourceView, source: int, *, place: int | None
) -> ModelStatistics:
    """Return the statistics that a method needs, from the open ``file``, which belongs to the model ``view``.

    ``said`` is the file's record of its statistics, and ``source`` is the index of the file in the plan. ``place`` is
    the index of the model in the file, if it has the statistics of several. Raises ConfigError if the file lacks this
    kind, or has statistics of tensors that the model does not have.
    """
    kind, path = method.statistics, escape(file.path)
    about = said.get(kind)
    if not isinstance(about, Mapping):
        raise ConfigError(
            f"{path} has no {NAMES[kind]} of any tensor, which the method {method.name} needs.",
            hint=f"Make the file with ckpt stats --{kind}.",
        )
    end, begin = f".{kind}", "" if place is None else f"{place}."
    keys = {
        key.removesuffix(end).removeprefix(begin): key for key in file if key.endswith(end) and key.startswith(begin)
    }
    for other, key in _map(about.get("tied")).items():
        keys.setdefault(other, f"{begin}{key}{end}")
    keys = {key: own for key, own in keys.items() if own in file}
    lacking = frozenset(_texts_of(about.get("lacking")))
    unknown = [key for key in (*keys, *lacking) if key not in view.tensors]
    if unknown:
        raise ConfigError(
            f"{path} has statistics of tensors that {escape(view.source.name)}, as ckpt merge reads it, does not "
            f"have: {listing(unknown)}.",
            hint="Give ckpt stats and ckpt merge the same --root, and do not use --unwrap.",
        )
    never = lacking & {*_texts_of(about.get("stacked"))}
    return ModelStatistics(source, kind, keys, frozenset(_texts_of(about.get("turned"))), lacking, never)


def _few(said: Mapping[str, Any], file: Checkpoint, found: ModelStatistics) -> tuple[list[str], set[str]]:
    """Return (weights whose Gram matrices have no inverse, those of them whose layer got no input).

    A Gram matrix has no inverse if it was made from fewer inputs than the layer has channels. ``said`` is the record of
    ``file`` on its statistics ``found``.
    """
    rows = said[found.kind].get("rows") if found.kind == GRAM else None
    number = {key: one for key, one in rows.items() if isinstance(one, int)} if isinstance(rows, Mapping) else {}
    few = [key for key, own in found.keys.items() if number.get(key, sys.maxsize) < max(file[own].shape, default=0)]
    return few, {key for key in few if number[key] == 0}


def _notes_of_few(few: Sequence[str], without: Collection[str], name: str) -> Iterator[str]:
    """Yield notes on the singular Gram matrices of the model ``name``, and on those ``without`` any input."""
    if without:
        modules = dict.fromkeys(key.rpartition(".")[0].rpartition(".")[0] for key in sorted(without))
        are_experts = all(one.rpartition(".")[2].isdecimal() for one in modules)
        what = count(len(modules), "expert") if are_experts else count(len(without), "tensor")
        yield (
            f"{escape(name)}: {what} got no input: the inputs of the other models decide, or the mean is taken if none "
            f"has any: {listing(list(modules) if are_experts else sorted(without))}"
        )
    if few:
        yield (
            f"{escape(name)}: the Gram matrices of {count(len(few), 'tensor')} have no inverse, because they were "
            f"made from fewer inputs than the layers have channels: {listing(few)}"
        )


def _map(value: Any) -> dict[str, str]:
    return {str(key): str(one) for key, one in value.items()} if isinstance(value, Mapping) else {}


def _texts_of(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
