"""Computes the layout of an output: one file or a folder of shards, the format, the sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, TypeGuard

from ...errors import ConfigError, OutputError
from ...formats.base.format_table import Writers, is_exported, is_weights, writers
from ...formats.base.header import ExtraEntries, IndexFile, OutputLayout, OutTensor, StoredQuantiser, Writer
from ...formats.base.rank_layout import RankWriter, SpreadLayout
from ...formats.base.untrusted import most_segments
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...storage.read.uri import scheme_of
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from .companion_files import file_names, without_adapter, written_to_folder
from .diffusers_pipeline import ComponentWriter, check_pipeline, component_files
from .option_names import OPTIONS, Spelling
from .ranks import RankOptions, check_ranks, rank_shares
from .shards import DEFAULT_SHARD, parse_size, sharded
from .unfit_format import too_many, unfit_dtype, unknown_suffix, unknown_to

__all__ = [
    "OutputFile",
    "OutputOptions",
    "OutputShape",
    "as_written",
    "check_options",
    "is_folder",
    "is_on_folder_name",
    "is_shared_out",
    "lay_out",
    "named_as_file",
    "writer_of",
]

_NAMED_AS_FILE = "has the name of a file, but is a folder, because of"
ALL_RANKS = "all ranks"
"""The name of the ``OutputFile`` that represents the files of all ranks."""


@dataclass(frozen=True)
class OutputOptions:
    """The options of an output: its path, its format (``to``), the largest size of its shards, and how it is written.

    If ``max_shard_size`` (``5GB``) is given, the output is a folder of shards. ``force`` allows the output to replace
    an earlier one. ``inputs`` are other files that were read and must not be overwritten, such as the plan or a file of
    rules. ``wait`` is the number of seconds to wait for another run that writes to the same path (None: do not wait).
    ``key`` is the file of a private key that signs the output. With ``restart``, the finished files that an interrupted
    run left are removed; otherwise they are used. ``consume`` deletes each shard of the sources as soon as the files of
    the output that need it are on disk. ``ranks`` are the options of formats with a file for each rank. ``spelling``
    says how messages call the options.
    """

    path: str
    to: str = ""
    max_shard_size: str = ""
    force: bool = False
    inputs: tuple[str, ...] = ()
    wait: float | None = None
    key: str = ""
    restart: bool = False
    consume: bool = False
    ranks: RankOptions = field(default_factory=RankOptions)
    spelling: Spelling = OPTIONS

    @classmethod
    def of(
        cls,
        output: str | os.PathLike[str] | None,
        to: str | None = None,
        max_shard_size: str | None = None,
        *,
        ranks: int | None = None,
        axis: Sequence[str] | None = None,
        mesh: str | None = None,
        **others: Any,
    ) -> OutputOptions:
        """Return the options from values of arguments; None for each that is not given."""
        shared = RankOptions(ranks or 0, (axis,) if isinstance(axis, str) else tuple(axis or ()), mesh or "")
        path = os.fspath(output) if output is not None else ""
        return cls(path, to or "", max_shard_size or "", ranks=shared, **others)


@dataclass(frozen=True)
class OutputFile:
    """One file of an output: its name in the folder ('' for a single file) and its layout.

    If the format has a file for each rank, one ``OutputFile`` with the name ``ALL_RANKS`` represents all of them.
    """

    name: str
    layout: OutputLayout

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files that are written: one, or one for each rank."""
        return tuple(self.layout.files) if isinstance(self.layout, SpreadLayout) else (self.name,)


@dataclass(frozen=True)
class OutputShape:
    """All files of an output: their names, sizes and layouts, which are known before anything is written.

    ``parts`` are the files with tensors. ``index`` has the files of a folder that contain no tensors, such as the
    index of shards, by name.
    """

    parts: tuple[OutputFile, ...]
    folder: bool
    index: Mapping[str, IndexFile] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of bytes of all files that contain tensors."""
        return sum(part.layout.size for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files of the output folder, including files without tensors."""
        return (*(name for part in self.parts for name in part.names), *self.index)

    @property
    def subfolders(self) -> list[str]:
        """The subfolders of the output folder that the files are in, such as the components of a pipeline."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.names if "/" in name))


def is_shared_out(options: OutputOptions) -> bool:
    """Return whether several processes can write an output: a folder, but not one with a file for each rank."""
    return is_folder(options) and not options.ranks.ranks


def is_folder(options: OutputOptions) -> bool:
    """Return whether an output is a folder.

    It is a folder if the path is a folder, ends in a slash or has no suffix. It is also a folder if ``max_shard_size``
    is given, or if outputs of the format are always folders.
    """
    path = options.path
    if os.path.isdir(path) or path.endswith("/") or options.max_shard_size:
        return True
    if scheme_of(path) == "hf":
        from ...storage.read.hugging_face.client import hub_address

        if not hub_address(path).path:  # a whole repository: a dot in its name is not the start of a suffix
            return True
    if options.to in writers() and not writers().suffixes[options.to]:
        return True
    return not os.path.splitext(path)[1] and not os.path.exists(path)


def named_as_file(options: OutputOptions) -> tuple[str, ...]:
    """Return the note that a new folder will have the name of a file, such as ``q.pth``; () if it will not."""
    path, to = options.path, options.to
    is_for_folders = to in writers() and not writers().suffixes[to]
    if not (is_weights(path) or is_exported(path)) or os.path.isdir(path):
        return ()
    option, value = ("--to", to) if is_for_folders else ("--max-shard-size", options.max_shard_size)
    return (f"{escape(path)} {_NAMED_AS_FILE} {options.spelling.given(option, value)}",) if value else ()


def is_on_folder_name(note: str) -> bool:
    """Return whether a note of a plan is that of ``named_as_file``.

    This compares words, because the JSON of a plan has only the text of a note.
    """
    return _NAMED_AS_FILE in note


def writer_of(options: OutputOptions) -> Writer:
    """Return the writer for an output's format; raises ConfigError if ``to`` or the suffix is of no known format."""
    known = writers()
    if options.to:
        if options.to not in known:
            raise unknown_to(options.to, known, options.spelling)
        _check_suffix(options, known)
        return known[options.to]
    if is_folder(options):
        return known["safetensors"]
    suffix = os.path.splitext(options.path)[1].lower()
    if to := known.named_by(suffix):
        return known[to]
    raise unknown_suffix(options.path, known)


def _check_suffix(options: OutputOptions, known: Writers) -> None:
    """Raise ConfigError if a file's suffix belongs to a different format from the one that ``to`` requests."""
    suffix = os.path.splitext(options.path)[1].lower()
    named = known.named_by(suffix)
    if named and named != options.to and not is_folder(options):
        name, given = options.spelling.name("--to"), options.spelling.given("--to", options.to)
        raise ConfigError(
            f"{given} and the suffix of {escape(options.path)} contradict each other.",
            hint=f"Change the name, or leave {name} out: the suffix {suffix} means the format {named}.",
        )


def _writes_ranks(writer: Writer) -> TypeGuard[RankWriter]:
    """Return whether a format has a file for each rank."""
    return hasattr(writer, "spread")


def _check_ranks(writer: Writer, options: OutputOptions) -> None:
    """Raise ConfigError if the options for ranks do not fit the format, or are not valid."""
    if _writes_ranks(writer):
        check_ranks(writer, options.ranks, options.spelling)
    elif options.ranks != RankOptions():
        given = options.spelling.name(options.ranks.given)
        raise ConfigError(f"{given} needs --to fsdp or --to tp.", hint=f"Leave {given} out.")


def _writes_components(writer: Writer) -> TypeGuard[ComponentWriter]:
    """Return whether a format has a folder for each component of a pipeline."""
    return hasattr(writer, "components")


def _out_tensors(steps: Sequence[Step], writer: Writer, quantisers: Mapping[str, StoredQuantiser]) -> list[OutTensor]:
    made = []
    for step in steps:
        if step.dtype not in writer.dtypes:
            raise unfit_dtype(step, writer)
        nbytes = (prod(step.shape) * DTYPES[step.dtype].bits + 7) // 8
        made.append(OutTensor(step.key, step.dtype, step.shape, nbytes, step.tied_to, quantisers.get(step.key)))
    return made


def check_options(options: OutputOptions) -> None:
    """Raise ConfigError for an unknown format or size, and OutputError for an address that cannot be written to."""
    if scheme_of(options.path):
        from ...storage.upload.destination import check_writable

        check_writable(options.path)
    writer = writer_of(options)
    _check_ranks(writer, options)
    if _writes_components(writer):
        check_pipeline(options.path, options.spelling)
    if options.max_shard_size:
        if _writes_ranks(writer):
            raise ConfigError(
                f"{options.spelling.given('--to', writer.name)} writes one file for each rank.",
                hint=f"Use --ranks in place of {options.spelling.name('--max-shard-size')}.",
            )
        parse_size(options.max_shard_size, spelling=options.spelling)


def as_written(plan: Plan, options: OutputOptions) -> Plan:
    """Return the plan with only the tensors and companion files that its output will have.

    If the output is a single file, the plan gets no companion files, and no notes on them. PEFT reads an adapter only
    from a folder with one safetensors file. If an adapter is copied to any other kind of output, the plan does not get
    its PEFT configuration. Raises PlanError for a folder if no config.json can describe the weights.
    """
    writer = writer_of(options)
    if plan.target.weights and not is_adapter(options):
        plan = without_adapter(plan)
    if is_folder(options):
        return written_to_folder(plan, writer)
    notes = tuple(note for note in plan.notes if note not in plan.target.notes)
    return replace(plan, target=replace(plan.target, companions=(), implied=(), notes=(), refused=""), notes=notes)


def lay_out(
    plan: Plan,
    options: OutputOptions,
    recipe: Sequence[str],
    beside: ExtraEntries | None = None,
    quantisers: Mapping[str, StoredQuantiser] | None = None,
) -> OutputShape:
    """Return the layout of a plan's output: its files, and the position of each tensor in them.

    If the output is a single file, this file also contains ``recipe`` and ``beside``, the entries other than tensors.
    ``quantisers`` are the parameters of the output's tensors that torch quantised, by key. Raises ConfigError for an
    unknown format or size, for a size below 1 MB that gives each tensor its own shard, or if the output cannot store
    ``beside``. Raises OutputError for a dtype that the format does not support.
    """
    check_options(options)
    writer, spelling = writer_of(options), options.spelling
    if plan.target.weights:
        _check_adapter(options)
    if beside is not None and (is_folder(options) or not writer.carries):
        where = "a folder" if is_folder(options) else writer.name
        raise ConfigError(f"{where} cannot store entries other than tensors.", hint="Write one .pth file.")
    tensors = _out_tensors(plan.steps, writer, quantisers or {})
    _check_readable(tensors, writer)
    metadata: Mapping[str, str] = {"format": "pt", **plan.metadata}
    if _writes_ranks(writer):
        shares = rank_shares(writer, tensors, options.ranks, spelling)
        whole = OutputFile(ALL_RANKS, writer.spread(tensors, metadata, shares))
        return OutputShape((whole,), folder=True, index=writer.index_of(shares))
    if _writes_components(writer):
        divide = partial(sharded, text=options.max_shard_size or DEFAULT_SHARD, writer=writer, spelling=spelling)
        files, index = component_files(writer, tensors, metadata, options.path, divide)
        return OutputShape(tuple(OutputFile(*one) for one in files.items()), folder=True, index=index)
    if not is_folder(options):
        return OutputShape((OutputFile("", writer.layout(tensors, metadata, recipe, beside)),), folder=False)
    size = options.max_shard_size or DEFAULT_SHARD
    shards = [tensors] if plan.target.weights else sharded(tensors, size, writer, spelling)
    sharding = file_names(plan, writer)
    names = [plan.target.weights] if plan.target.weights else sharding.names(len(shards))
    layouts = {name: (shard, writer.layout(shard, metadata, ())) for name, shard in zip(names, shards, strict=True)}
    parts = tuple(OutputFile(name, layout) for name, (_, layout) in layouts.items())
    return OutputShape(parts, folder=True, index=sharding.index(layouts))


def _check_readable(tensors: Sequence[OutTensor], writer: Writer) -> None:
    """Raise OutputError if ckptsurgeon could not read the output: it has too many tensors, or too long keys.

    The limit for keys is the total number of their segments. A segment is the part of a key between two dots.
    """
    if len(tensors) > writer.most:
        raise too_many(len(tensors), writer)
    segments = sum(tensor.key.count(".") + 1 for tensor in tensors)
    if segments > most_segments(len(tensors)):
        raise OutputError(
            f"the keys have {segments} parts between dots in total: ckptsurgeon reads at most "
            f"{most_segments(len(tensors))}.",
            hint="Write several smaller outputs, with ckpt filter.",
        )


def is_adapter(options: OutputOptions) -> bool:
    """Return whether an output is a folder with one file of safetensors, as PEFT reads it."""
    return is_folder(options) and not options.max_shard_size and writer_of(options).name == "safetensors"


def _check_adapter(options: OutputOptions) -> None:
    """Raise ConfigError if PEFT could not read the output as an adapter."""
    if not is_adapter(options):
        raise ConfigError(
            f"{escape(options.path)} cannot be an adapter: PEFT reads a folder with one safetensors file.",
            hint=f"Write to a folder, without {options.spelling.name('--to')} and "
            f"{options.spelling.name('--max-shard-size')}.",
        )
