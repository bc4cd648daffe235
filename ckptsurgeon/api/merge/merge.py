"""``merge``: makes one model from several models, by a merge method."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import is_given, is_live, path_of, place_of
from ...engine.apply_settings import MemoryLimitError, memory_error
from ...engine.compute.compute import memory_bytes
from ...engine.compute.torch_arrays import check_device
from ...errors import ConfigError
from ...methods.merge._method import Method
from ...methods.merge._registry import check_number, load_plugin, method_named
from ...planning.merge.differing_models import MergeOptions
from ...planning.merge.pieces import ParameterValues, Settings, pieces_of
from ...planning.merge.plan import plan_merge
from ...planning.merge.tied_tensors import with_tied_heads
from ...planning.plan.files import SourceView
from ...planning.plan.plan import Plan
from ...planning.transplant.by_place import is_of_tokens
from ..inputs.argument_types import (
    AxisGroups,
    CheckpointLike,
    Given,
    Mismatch,
    Parameters,
    Path,
    Patterns,
    Rules,
    Sources,
    check_seed,
    checked,
    plain_arguments,
)
from ..inputs.encoding import ENCODINGS, as_stored, check_encoding
from ..inputs.inputs import names_of, plan_source, view_of
from ..inputs.kept_codes import keeping_codes
from ..inputs.metadata import check_metadata, with_metadata
from ..inputs.older_names import older_name_notes, older_names_said
from ..inputs.sampled_parts import SAME, base_notes, twice_notes, unrelated_notes
from ..inputs.stored_recipes import counted_notes
from ..model_folder.checks import with_sources_said, without_repeats
from ..model_folder.folder import ModelFolder, model_folder
from ..model_folder.quantised import folder_of
from ..model_folder.recorded_tokens import with_other_lists_said
from .request import MergeRequest, VocabularyRequest, check_names, given_settings, plain_settings
from .statistics import MergeStatistics, opened_statistics

if TYPE_CHECKING:
    import torch

    from ...planning.merge.vocabulary import MergeVocabulary
    from .vocabulary import ModelTokens

__all__ = ["merge"]


@checked
def merge(
    models: Sources,
    *,
    method: str | None = None,
    base: CheckpointLike | None = None,
    weights: Sequence[float] | None = None,
    parameters: Parameters = (),
    statistics: Rules = (),
    on_missing: str = "error",
    on_mismatch: Mismatch = "error",
    vocab: Path | None = None,
    tokens: Rules = (),
    vocab_keys: Patterns = (),
    int_buffers: str = "last",
    align: bool = False,
    align_groups: AxisGroups = None,
    encoding: str = "keep",
    dtype: str | torch.dtype | None = None,
    compute: str | torch.dtype | None = None,
    seed: int = 0,
    plugin: Path | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    unwrap: bool = False,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
    **more: Given,
) -> Plan:
    """Plan a merge of models by a method or a recipe of mergekit; reads headers and some values, with ``align`` all.

    ``models`` are the models, or the path of a recipe (``merge("recipe.yaml")``), which itself contains the models, the
    method, the base and the parameters. ``base`` is the model that the others were trained from, or from which the
    method starts. ``parameters`` are those of the method, by name; each can also be given as an argument
    (``density=0.5``). A value is a number, a list with a number for each model, a map from key patterns to values, or
    ``{"gradient": [0, 1]}`` for values from the first layer to the last. ``weights`` is the parameter ``weight`` for
    all keys. ``statistics`` maps each model to the file that the verb ``stats`` made from it; it may also be strings
    MODEL=FILE. The methods "regmean" and "fisher" need such a file of each model, "aim" needs one of the base, and
    "regmean_plusplus" one file for all models.

    ``on_missing`` decides about a tensor that some models lack: "error"; "base" (the base's tensor replaces it); "skip"
    (the output does not get the tensor); "any" (it is merged from the models that have it). ``on_mismatch`` decides
    about a tensor whose shape differs from the shape in the base or, without a base, in the first model: "error";
    "skip" (the model's tensor is ignored); "slice" (its leading part is merged); "overlap" (the part that all models
    have is merged, and the rest is taken from the base or first model). ``on_mismatch`` is one policy for all tensors,
    or a map from pattern to policy.

    ``vocab`` merges models with different vocabularies token by token; the output's vocabulary is "union", "base" (that
    of the base or first model), or the file of a token list. With "place", row n is merged with row n, whatever the
    tokens are. ``tokens`` gives the token list of a model whose folder has none; ``vocab_keys`` lists the tensors with
    a row for each token (GLOB, GLOB=AXIS), if their sizes do not show this. ``int_buffers`` ("last", "first", "max")
    chooses the values of integer tensors.

    With ``align``, each model is first aligned with the base or, without a base, with the first model (Git Re-Basin,
    arXiv 2209.04836). Its channels, heads, experts and the dimensions of its residual stream are permuted, so that its
    weights become as similar as possible to the weights of the base or first model. The aligned model computes the same
    as before. All weights are read for this when the plan is made. The axes that may be permuted follow from the
    network in config.json. For other models, ``align_groups`` lists them, as a map from names of groups to axes
    (``{"hidden": {"fc1.weight": 0, "fc2.weight": 1}}``), or as a YAML file.

    Quantised models are decoded before the merge; the result is quantised like the base or first model, or stored as
    plain numbers if ``encoding`` is "dequantize". ``dtype`` is the dtype of the output, by default one that holds all
    values of the models; ``compute`` is the dtype of the computation, float32 or float64. ``seed`` is the seed of
    methods that draw random numbers. ``plugin`` is a Python file with your own merge methods; it is run. ``memory``
    (such as "512MB") limits the memory of the computation. ``device`` is "cpu" or "cuda"; on "cuda", torch computes.

    ``unwrap`` removes a wrapper's prefix, such as ``module.``, from all keys; ``root`` is the dotted path of the state
    dict in each file, such as ``model.ema``. ``metadata`` sets entries of the metadata, as in ``convert``. If the base,
    or else the first model, is a transformers folder, the output gets its configuration and tokeniser.

    Raises ConfigError for an unknown method or parameter, PlanError if the models differ or ``memory`` is too small,
    and the errors of ``open_checkpoint``.
    """
    dtype, compute = (None if one is None else str(one) for one in (dtype, compute))
    if metadata:
        check_metadata(metadata)
    if device != "cpu":
        check_device(device)
    if encoding != ENCODINGS[0]:
        check_encoding(encoding)
    check_seed(seed)
    groups = _groups(align_groups, align=align)
    vocabulary = VocabularyRequest(os.fspath(vocab) if vocab is not None else None, tokens, vocab_keys)
    elsewhere = device if device != "cpu" else ""
    options = MergeOptions.of(
        on_missing=on_missing, on_mismatch=on_mismatch, int_buffers=int_buffers, dtype=dtype, compute=compute,
        device=elsewhere,
    )  # fmt: skip
    arguments = plain_arguments(
        method=method, on_missing=on_missing, on_mismatch=on_mismatch, int_buffers=int_buffers, dtype=dtype,
        compute=compute, unwrap=unwrap, root=root, device=elsewhere or None, **vocabulary.said,
        align=align, align_groups=groups, encoding=encoding,
    )  # fmt: skip
    plugins = load_plugin(os.fspath(plugin)) if plugin is not None else ()
    asked = MergeRequest(
        options, vocabulary, arguments, seed, plugins, memory_bytes(memory), unwrap, root, encoding, statistics,
        align, groups,
    )  # fmt: skip
    if isinstance(models, (str, os.PathLike)):
        recipe = os.fspath(models)
        from .mergekit import check_alone, plan_configuration, read_recipe  # most merges need no recipe

        check_alone(recipe, method=method, base=base, weights=weights, parameters=parameters, **more)
        document = read_recipe(recipe)
        found = method_named(document["merge_method"], asked.plugins)
        plan = _with_memory_advised(asked, lambda given: plan_configuration(recipe, document, found, given))
        return with_metadata(plan, metadata) if metadata else plan
    if method is None:
        raise ConfigError(
            "no method given.", hint="Write, for example, merge(models, method='linear', weights=[0.5, 0.5])."
        )
    found = method_named(method, asked.plugins)
    check_names(found, more, inspect.signature(merge).parameters)
    several = [cast("CheckpointLike", models)] if is_given(models) else list(cast("Sequence[CheckpointLike]", models))
    check_number(found, len(several), has_base=base is not None)
    settings = given_settings(found, parameters, more, weights)
    every = several if base is None else [base, *several]
    has_live = any(map(is_live, every))
    with older_names_said(every, root) if has_live else nullcontext():
        plan = _with_memory_advised(asked, lambda given: _plan_models(several, base, found, settings, given))
    if has_live:
        plan = replace(plan, notes=(*plan.notes, *older_name_notes(every, root)))
    return with_metadata(plan, metadata) if metadata else plan


def _with_memory_advised(asked: MergeRequest, plan: Callable[[MergeRequest], Plan]) -> Plan:
    """Return ``plan(asked)``; an error about the memory for an alignment advises enough for the merge, too."""
    try:
        return plan(asked)
    except MemoryLimitError as error:
        if not asked.align:
            raise
        try:
            plan(replace(asked, align=False, memory=1))  # less than any merge needs
        except MemoryLimitError as merging:
            raise memory_error(error.message, max(error.needed, merging.needed)) from error
        raise


def _groups(align_groups: AxisGroups, *, align: bool) -> Mapping[str, Any] | None:
    """Return the parsed groups of axes; None if there are none. Raises ConfigError for groups without ``align``."""
    if align_groups is None:
        return None
    from ..aligning.own_groups import group_fields  # most merges align nothing

    groups = group_fields(align_groups)
    if groups is not None and not align:
        raise ConfigError("--align-groups is only for --align.", hint="Add --align.")
    return groups


def _plan_models(
    models: list[CheckpointLike], base: CheckpointLike | None, method: Method, settings: Settings, asked: MergeRequest
) -> Plan:
    """Return the plan that merges models tensor by tensor, with the configuration and tokeniser for an output folder.

    ``settings`` are the parameters of the method, and ``asked`` has the other arguments of ``merge``.
    """
    ordered = models if base is None else [*models, base]
    last = None if base is None else len(models)
    names, donor = names_of(list(map(path_of, ordered))), last or 0
    with ExitStack() as stack:
        opened = asked.opened(ordered, stack, base=last)
        aligned = asked.aligned(opened, donor)
        opened[:] = aligned.checkpoints
        views = _views(names, opened, aligned.operations)
        numbers, at = list(range(len(models))), last
        if method.base == "model" and at is not None:
            numbers, at = [at, *numbers], None
        values = ParameterValues(method, settings, [{} for _ in numbers])
        stored = as_stored(opened, asked.encoding) if any(one.stored is not None for one in opened) else opened
        folders = [model_folder(one) if one.stored is None else folder_of(one) for one in stored]
        paths = [place_of(one) or name for one, name in zip(ordered, names, strict=True)]
        chosen = _vocabulary(asked, paths, views, folders, first=donor)
        measured = [at] if method.measures_base and at is not None else numbers
        more = MergeStatistics()
        if method.statistics or asked.statistics:
            at_models = {number: opened[number] for number in measured}
            more = opened_statistics(asked.statistics, method, at_models, views, stack, paths=paths)
        tied = {number for number, one in enumerate(folders) if one.is_tied}
        pieces = pieces_of(views, numbers, at, method, values)
        vocabulary, encoded = chosen[0] if chosen else None, asked.encoded(stored[donor])
        options = replace(asked.options, vocabulary=vocabulary, statistics=more.by_model, encoded=encoded)
        plan = plan_merge(
            [*views, *more.views],
            list(with_tied_heads(pieces, views, tied)) if tied else pieces,
            options,
            seed=asked.seed,
            arguments=_recorded(asked, settings, base=None if base is None else views[-1].source.name),
            metadata=stored[donor].metadata,
            notes=[
                *asked.notes(opened), *aligned.notes, *_repeated(opened, len(models), method, settings),
                *(counted_notes(opened[: len(models)]) if any(one.recipe for one in opened) else ()), *more.notes,
            ],
        )  # fmt: skip
        every = [*opened, *more.opened]
        if any(one.stored is not None for one in opened):
            plan, every = keeping_codes(plan, every, asked.encoding, donor, dtype=asked.options.dtype)
        by_place = asked.vocabulary.is_by_place
        plan = _with_files(plan, stored, folders, donor, chosen[1] if chosen else None, by_place=by_place)
        if chosen is None and not by_place and any(is_of_tokens(step.key, len(step.shape)) for step in plan.steps):
            plan = with_other_lists_said(plan, [stored[donor], *stored])
        plan = asked.carried(plan, every, donor=donor)
        stack.pop_all()
    return plan


def _vocabulary(
    asked: MergeRequest,
    paths: Sequence[str],
    views: Sequence[SourceView],
    folders: Sequence[ModelFolder],
    *,
    first: int,
) -> tuple[MergeVocabulary, ModelTokens] | None:
    """Return how rows are merged by token, and the token lists; None if rows are not merged by token."""
    if not asked.vocabulary.is_by_token():
        return None
    from .vocabulary import InputModel, merge_vocabulary  # most merges have one vocabulary

    return merge_vocabulary(asked.vocabulary, list(map(InputModel, paths, views, folders)), first=first)


def _recorded(asked: MergeRequest, settings: Settings, *, base: str | None) -> dict[str, Any]:
    """Return the arguments of the merge, as the recipe of the output records them; ``base`` is the name of the base."""
    return {
        **asked.arguments,
        **({"parameters": plain_settings(settings)} if settings else {}),
        **({"base": base} if base is not None else {}),
    }


def _with_files(
    plan: Plan,
    stored: Sequence[Checkpoint],
    folders: Sequence[ModelFolder],
    donor: int,
    tokens: ModelTokens | None,
    *,
    by_place: bool,
) -> Plan:
    """Return the plan with the files of the output, if any model has files; the arguments are as in ``with_files``."""
    if tokens is None and not _have_files(plan, folders):
        return without_repeats(with_sources_said(plan, stored, folders), stored[donor])
    from .model_files import with_files

    return with_files(plan, stored, folders, donor, tokens, by_place=by_place)


def _have_files(plan: Plan, folders: Sequence[ModelFolder]) -> bool:
    """Return whether a model has other files besides its weights; adapters always have such files."""
    return not all(one.is_bare for one in folders) or any(".lora_" in step.key for step in plan.steps)


def _repeated(opened: Sequence[Checkpoint], models: int, method: Method, settings: Settings) -> list[str]:
    """Return notes on models that are given twice, that are also the base, or that were not trained from the base.

    ``opened`` has ``models`` models, followed by the base, if there is one. ``settings`` are the method's parameters.
    """
    if method.base == "model" or len(opened) == models:
        return [*twice_notes(opened, _factors(method, settings)), *unrelated_notes(opened[0], opened[1:], SAME)]
    notes = twice_notes(opened[:models], _factors(method, settings))
    base = opened[models]
    return [*notes, *base_notes(base, opened[:models]), *unrelated_notes(base, opened[:models])]


def _factors(method: Method, settings: Settings) -> Sequence[float]:
    """Return the factor of each model if the method adds the models or their changes; else, or if they vary, ()."""
    given = settings.get("weight", ())
    if method.name not in ("linear", "task_arithmetic") or len(given) != 1 or not given[0].is_for_all:
        return ()
    return [float(one) for one in given[0].models]


def _views(
    names: Sequence[str], opened: Sequence[Checkpoint], operations: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[SourceView]:
    """Return the open models in the form that planners read; ``operations`` are those that aligned the models."""
    named = enumerate(zip(names, opened, strict=True))
    return [
        view_of(plan_source(name, checkpoint, operations=operations.get(index, ())), checkpoint)
        for index, (name, checkpoint) in named
    ]
