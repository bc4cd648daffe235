"""``apply``: carries out a plan, which writes the output."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..destinations.hf.files import ADAPTER
from ..errors import ConfigError
from ..formats.base.sharded_writer import RECIPE_FILE
from ..planning.plan.files import ADAPTER_VERBS
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Receipt
from ..util.text import escape, listing
from ..util.version import __version__
from .inputs.argument_types import Path, Progress, checked
from .inputs.inputs import close_inputs, close_plan
from .inputs.recipe_files import is_recipe
from .inputs.reopening import inputs_of, read_plan

if TYPE_CHECKING:
    from ..engine.inputs import PlanInputs
    from ..engine.output.layout import OutputOptions
    from ..engine.processes import Helpers, ProcessGroup
    from ..formats.base.header import ExtraEntries
    from ..methods.merge._method import Method
    from .ray_tasks import RayTasks

__all__ = ["apply", "check_form", "check_output", "notes_of", "open_inputs", "output_formats", "output_suffixes"]

_OF_MODELS = (".bpe", ".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".tokenizer", ".txt")
"""Suffixes of the files that a model's folder may contain besides its weights."""
INDEX = ".index.json"


@checked
def apply(
    plan: Plan | Path,
    output: Path | None = None,
    *,
    to: str | None = None,
    max_shard_size: str | None = None,
    ranks: int | None = None,
    axis: Sequence[str] | None = None,
    mesh: str | None = None,
    force: bool = False,
    wait: float | None = None,
    memory: str | int | None = None,
    plugin: Path | None = None,
    key: Path | None = None,
    restart: bool = False,
    consume: bool = False,
    processes: bool = False,
    engine: str | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Carry out a plan, given as an object or as the file of a plan or recipe: write all of ``output``, or nothing.

    ``output`` is a path, or an address such as "s3://bucket/model" or "hf://org/repo@branch". A recipe (YAML) may
    contain the output and options for writing it; arguments of this call override them. If ``plan`` is a file, the
    receipt includes the notes of the plan.

    ``to`` is the format ("safetensors", "pth", "dcp", "tensorflow"); by default the suffix of ``output`` decides. If
    ``output`` is a folder, or if ``max_shard_size`` is set (such as "5GB"), shards with an index are written. If ``to``
    is "fsdp" or "tp", one file is written for each of ``ranks`` ranks: ``axis`` has strings "GLOB=AXIS": tensors that
    match are split along this axis. ``mesh`` ("cuda:fsdp") is the device mesh of the DTensors.

    ``wait`` is the number of seconds, or math.inf, to wait for another run that writes the same output. ``memory``
    (such as "512MB") limits the memory for computing merges, including merges of adapters. ``plugin`` is a Python file
    with your own merge methods; this file is run. ``key`` is the file of a private key (Ed25519) that signs every file
    of the output; the signature is in ``OUT.sig`` or, for a folder, in its ``model.sig``. ``progress`` is called with
    (bytes done, bytes in total).

    If a run that writes several shards is interrupted, its finished shards stay in a temporary folder, and the same
    call continues from there. With ``restart``, the call removes these shards and starts again, unless that run had
    ``consume``. ``consume`` deletes each shard of the sources (local safetensors), and of the base of a merge, as soon
    as the output shards made from it are on disk. With ``processes``, the shards are divided among the processes that
    ``torchrun`` has started. Each of these processes must make this call with the same plan; the receipt of the first
    process describes the whole output. With ``engine`` "ray" or "ray://HOST:PORT", each shard is written by a Ray task,
    on nodes that share the file system.

    Raises ConfigError if no output is given, or an option is not valid. Raises PlanError if an input has changed since
    the plan was made, or ``memory`` is too small. Raises OutputError if the output exists (without ``force``), is an
    input, is being written by another run, cannot be written, or has unfinished shards of another call. Raises
    FormatError if an input fails its checksum. If a recipe asserts a verdict of ``prove`` (``proved``) and the output
    has another verdict, VerifyError is raised after the output is written.
    """
    from ..engine.apply import carry_out
    from ..engine.output.layout import OutputOptions, is_shared_out, named_as_file
    from ..engine.output.shards import parse_size
    from ..engine.part_worker import run_worker
    from ..engine.processes import process_group
    from ..planning.recipe_text import make_recipe
    from ..storage.write.output_paths import check_is_possible, check_wait
    from .inputs.stored_recipes import merged_adapters

    check_wait(wait)
    proved, from_file = "", not isinstance(plan, Plan)
    given: dict[str, Any] = {"to": to, "max_shard_size": max_shard_size, "ranks": ranks, "axis": axis, "mesh": mesh}
    options = OutputOptions.of(output, **given)
    others: tuple[str, ...] = () if isinstance(plan, Plan) else (os.fspath(plan),)
    if not isinstance(plan, Plan) and is_recipe(plan):
        from .inputs.output_form import completed_options
        from .recipes import plan_recipe

        order = plan_recipe(plan)
        options = completed_options(plan, order, output, **given)
        plan, proved, output = order.plan, order.proved, order.output if output is None else output
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    if output is None:
        close_plan(plan)
        raise ConfigError("no output given.", hint="Name the output with --output.")
    most = parse_size(memory, "--memory") if memory is not None else 0
    plugins = _loaded(plugin) if plugin is not None else ()
    opened = open_inputs(plan) or inputs_of(plan)
    inputs = replace(opened, plugins=plugins or opened.plugins, memory=most or opened.memory)
    try:
        _check_plan(plan, inputs, proved, memory=most)
        options = replace(
            options,
            force=force,
            wait=wait,
            inputs=others + inputs.others,
            key=os.fspath(key or ""),
            restart=restart,
            consume=consume,
        )
        check_is_possible(options.path)
        if engine:
            _check_no_ranks(options)
        may_have = plan.verb == "lora merge" or any(source.recipe for source in inputs.sources)
        adapters = merged_adapters(plan, inputs) if may_have else ()
        recipe = make_recipe(plan, options.path.rstrip("/"), __version__, adapters)
        entries, lost = _metadata_of(plan, inputs, options)
        lost = (*named_as_file(options), *lost)
        with ExitStack() as stack:
            group = stack.enter_context(process_group()) if processes else None
            if group is not None and not group.is_first:
                return run_worker(plan, inputs, options, group, progress)
            if group is not None:
                stack.enter_context(group.leading())
            helpers: Helpers | None = group if is_shared_out(options) else None
            if engine:
                helpers = stack.enter_context(_tasks(engine, plan, inputs, options, group))
            receipt = carry_out(plan, inputs, options, recipe, progress, entries, helpers)
    finally:
        close_inputs(inputs)
    ran = inputs.target.ran if from_file and inputs.target is not None else ()
    planned: Sequence[str] = notes_of(plan, output, to=options.to, max_shard_size=options.max_shard_size)
    if planned:
        from .inputs.output_form import without_notes

        planned = without_notes(planned, options, engine)
    left = [note for note in _left_there(plan, options) if note not in plan.notes]
    unused = _without_effect(plan, inputs.plugins, memory=most)
    notes = dict.fromkeys([*(f"ran {code}" for code in ran), *planned, *receipt.notes, *lost, *unused, *left])
    receipt = replace(receipt, notes=tuple(notes))
    if not proved:
        return receipt
    from .prove.output import require_proof

    return replace(receipt, proved=require_proof(plan, output, proved))


def _check_plan(plan: Plan, inputs: PlanInputs, proved: str, *, memory: int) -> None:
    """Raise an error if a plan cannot give the required verdict, makes an invalid adapter, or needs too much memory.

    ``proved`` is the verdict of ``prove`` that the recipe requires, "" if it requires none: for this, it must be
    possible to build the network. The tensors of an adapter must fit its adapter_config.json. ``memory`` is the limit
    in bytes, 0 if none was given.
    """
    if proved:
        from .prove.output import check_runs

        check_runs(plan)
    if inputs.sources and _makes_adapter(plan):
        from .lora.edited_plan import check_edited_adapter  # imported here, because only adapters need it

        check_edited_adapter(plan, inputs.sources[0])
    if memory:
        from ..engine.compute.compute import with_costs  # imports numpy

        with_costs(plan, memory, inputs.plugins)


def _check_no_ranks(options: OutputOptions) -> None:
    """Raise ConfigError if the output has one file for each rank: one process writes all of these files.

    Raises the errors of ``check_options`` before.
    """
    from ..engine.output.layout import check_options

    check_options(options)
    if options.ranks.ranks:
        raise ConfigError(
            f"--to {options.to} cannot be used with --engine: one process writes the files of all ranks.",
            hint="Leave --engine out.",
        )


def _tasks(
    engine: str, plan: Plan, inputs: PlanInputs, options: OutputOptions, group: ProcessGroup | None
) -> AbstractContextManager[RayTasks]:
    """Return a context manager that gives the Ray tasks of ``engine``; raises ConfigError if torchrun is also used.

    ``group`` are the processes that torchrun has started; None if there is only one process.
    """
    if group is not None:
        raise ConfigError(
            "--engine cannot be used under torchrun: both divide the output into parts.", hint="Use only one of them."
        )
    from .ray_tasks import ray_tasks

    return ray_tasks(engine, plan, inputs, options)


def _left_there(plan: Plan, options: OutputOptions) -> tuple[str, ...]:
    """Return notes on files of an earlier model that are still in the folder of the output."""
    from ..engine.output.companion_files import existing_checkpoint
    from ..engine.output.layout import as_written, is_folder
    from ..formats.base.format_table import has_weights

    path, written = options.path, set[str]()
    index: tuple[str, ...] = ()
    if is_folder(options):
        written = {one.name for one in as_written(plan, options).target.companions}
    elif not has_weights([os.path.basename(path)]):
        return ()
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(path if is_folder(options) else os.path.dirname(path) or os.curdir)
    if not is_folder(options) and f"{os.path.basename(path)}{INDEX}" in names:
        index = (_index_left(path, names),)
    if is_folder(options):
        others = {*names} - {*existing_checkpoint(path)}
    else:
        others = {name for name in names if name.endswith(_OF_MODELS) and not name.endswith(INDEX)} - {RECIPE_FILE}
    if others <= written:
        return index
    from .model_folder.earlier_files import earlier_files_notes

    return (*index, *earlier_files_notes(options.path, written, plan.target.companions))


def _index_left(path: str, names: Sequence[str]) -> str:
    """Return the note on the index that an earlier sharded model left in the folder of the single file ``path``.

    ``names`` are the names of the files in the folder.
    """
    from ..formats.base.format_table import shards_among

    where, name = os.path.split(path)
    found = f"{escape(where) or '.'} still has {escape(name)}{INDEX}"
    stem = os.path.splitext(name)[0]
    if not any(one.startswith(f"{stem}-") for one in shards_among(names)):
        return f"{found}, from an earlier model; remove it, or load the new file by its path"
    return (
        f"{found} and its shards, from an earlier model; "
        "the folder has two models now: remove the index and its shards, or load the new file by its path"
    )


def _without_effect(plan: Plan, plugins: Sequence[Method], *, memory: int) -> Iterator[str]:
    """Yield a note for each of the arguments ``memory`` and ``plugin`` that was given, but changes nothing.

    ``plugins`` are the methods of the plugin, which may have been given when the plan was made.
    """
    if memory:
        from ..engine.compute.compute import computes  # imports numpy

        if not computes(plan):
            yield "memory has no effect: this plan computes no tensor that it limits"
    used = {step.merge.method for step in plan.steps if step.merge is not None}
    if plugins and used.isdisjoint(method.name for method in plugins):
        methods = listing([method.name for method in plugins], where="")
        yield f"plugin has no effect: this plan uses none of its methods ({methods})"


def _loaded(plugin: Path) -> tuple[Method, ...]:
    from ..methods.merge._registry import load_plugin  # imports numpy, which not every plan needs

    return load_plugin(os.fspath(plugin))


def output_formats() -> list[str]:
    """Return the names of the formats that can be written: the values of ``to``."""
    return sorted(output_suffixes())


def output_suffixes() -> Mapping[str, Sequence[str]]:
    """Return the suffixes of files in each format that can be written; none if the format is always a folder."""
    from ..formats.base.format_table import writers

    return writers().suffixes


def check_output(
    output: Path,
    *,
    to: str | None = None,
    max_shard_size: str | None = None,
    plan: Plan | None = None,
    ranks: int | None = None,
    axis: Sequence[str] | None = None,
    mesh: str | None = None,
) -> tuple[str, ...]:
    """Check an output before ``apply``: its format, its shard size and whether it can store the result of ``plan``.

    Without a ``plan``, only the options are checked. Raises the errors that ``apply`` would raise for these,
    for example for dtypes or entries that the format cannot store. Returns the notes on the output that ``apply`` would
    add: that a folder is named as a file, and on its metadata; none on metadata if the inputs of the plan are closed.
    """
    from ..engine.output.layout import OutputOptions

    return check_form(OutputOptions.of(output, to, max_shard_size, ranks=ranks, axis=axis, mesh=mesh), plan)


def check_form(options: OutputOptions, plan: Plan | None = None) -> tuple[str, ...]:
    """Check an output as ``check_output`` does."""
    from ..engine.output.layout import as_written, check_options, lay_out, named_as_file
    from ..formats.base.header import ExtraEntries

    check_options(options)
    if plan is None:
        return ()
    carries = plan.carried.root or plan.carried.entries
    lay_out(as_written(plan, options), options, "", ExtraEntries() if carries else None)
    inputs = open_inputs(plan)
    lost = _metadata_of(plan, inputs, options)[1] if inputs is not None else ()
    return (*named_as_file(options), *lost)


def open_inputs(plan: Plan) -> PlanInputs | None:
    """Return the inputs that a plan keeps open; None if they were closed, or the plan was read from a file."""
    from ..engine.inputs import PlanInputs

    inputs = plan.inputs
    if not isinstance(inputs, PlanInputs) or any(source.closed for source in inputs.sources):
        return None
    return inputs


def _makes_adapter(plan: Plan) -> bool:
    """Return whether a plan makes an adapter: it extracts one, or its output gets an adapter_config.json."""
    is_described = any(one.name == ADAPTER and one.text for one in plan.target.companions)
    return is_described or plan.verb in ADAPTER_VERBS or any(step.op == "factor" for step in plan.steps)


def _metadata_of(plan: Plan, inputs: PlanInputs, options: OutputOptions) -> tuple[ExtraEntries | None, tuple[str, ...]]:
    """Return the metadata of a GGUF output (None for an output in another format), and notes on the metadata."""
    from ..engine.output.layout import writer_of

    if writer_of(options).name == "gguf":
        from .gguf.entries import gguf_entries

        return gguf_entries(plan, inputs, options)
    is_of_gguf = "general.architecture" in plan.metadata or any(one.header.stored for one in inputs.sources)
    if not is_of_gguf and not plan.arguments.get("metadata"):
        return None, ()
    from .gguf.outputs import notes_on_other_format

    return None, notes_on_other_format(plan, inputs, options)


def notes_of(
    plan: Plan, output: Path | None = None, *, to: str | None = None, max_shard_size: str | None = None
) -> tuple[str, ...]:
    """Return the notes of a plan that apply to an output.

    Without ``output``, all notes of the plan are returned. If ``output`` is a single file, notes on the other files of
    an output folder are left out. If ``to`` is "tensorflow", notes on that format are added.
    """
    from ..engine.output.layout import OutputOptions, as_written

    if output is None:
        return plan.notes
    written = as_written(plan, OutputOptions.of(output, to, max_shard_size))
    if to != "tensorflow":
        return written.notes
    from .model_folder.coqui import tensorflow_notes

    return (*written.notes, *tensorflow_notes(written))
