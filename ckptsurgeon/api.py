"""The public verbs. Each opens what it needs, calls the rooms in order, and returns plain results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from . import __version__
from .checkpoint import Checkpoint, open_checkpoint
from .configs import declare, dump_yaml, load_target, module_destination
from .errors import CheckpointError, ConfigError, FormatError, PlanError, SourceError, VerifyError
from .inspection import Inspection, inspection_of
from .keys import Rule, rules_from_lines
from .plan import Failure, FilePrint, Plan, PlanSource, PlanTarget, Receipt, Step, Verification
from .planners import Options, SourceView, plan_transplant
from .sources import SourceSpec, parse_spec
from .tensors import TargetSpec, TensorInfo
from .text import escape

if TYPE_CHECKING:
    from torch import nn

    from .engine import Inputs

__all__ = [
    "Checkpoint",
    "Inspection",
    "Plan",
    "Receipt",
    "Rule",
    "Step",
    "TargetSpec",
    "TensorInfo",
    "Verification",
    "apply",
    "init_config",
    "inspect",
    "load_into",
    "load_target",
    "open_checkpoint",
    "transplant",
    "verify",
]

Path: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int], None]
Patterns: TypeAlias = Iterable[str]


def inspect(path: Path, *, root: str | None = None, include: Patterns = (), stats: bool = False) -> Inspection:
    """Describe a checkpoint from its headers: every tensor, what it shares, what else is in the file.

    ``include`` limits the description to keys that match; ``stats`` reads their values too. Raises what
    ``open_checkpoint`` raises, and PatternError for a pattern that matches nothing.
    """
    with open_checkpoint(path, root) as checkpoint:
        return inspection_of(checkpoint, include, stats=stats)


def transplant(
    source: Path | Sequence[Path],
    destination: Path,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Patterns = (),
    map_file: Path | None = None,
    on_mismatch: str | Mapping[str, str] | Sequence[str] = (),
    on_missing: str = "init",
    reinit: Patterns = (),
    require: Patterns = (),
    strict: bool = False,
    dtype: str | None = None,
    seed: int = 0,
    root: str | None = None,
) -> Plan:
    """Plan the transplant of one or more sources, later over earlier, into a destination; reads headers only.

    ``source`` may be in ESPnet's form ``file:src_key:dst_key:exclude_keys``. ``destination`` is a configuration or
    a checkpoint. ``map`` holds rules FROM=TO, ``map_file`` names a file of more; ``on_mismatch`` is one policy for
    all (init, slice, pad, overlap, interpolate) or a map from pattern to policy; ``dtype`` is "keep" or the dtype of
    all floating tensors.

    Raises PatternError, ConfigError, SourceError, FormatError, or PlanError where the plan is impossible.
    """
    map = [*([map] if isinstance(map, str) else map), *_rules_of(map_file)]
    target = load_target(destination)
    options = Options.of(
        include=include, exclude=exclude, rules=map, on_mismatch=on_mismatch, reinit=reinit,
        require=require, on_missing=on_missing, strict=strict, dtype=dtype,
    )  # fmt: skip
    arguments = _arguments(
        include=include, exclude=exclude, map=map, on_mismatch=on_mismatch, on_missing=on_missing,
        reinit=reinit, require=require, strict=strict, dtype=dtype, root=root,
    )  # fmt: skip
    specs = [parse_spec(os.fspath(item)) for item in _many(source)]
    return _plan(specs, target, options, seed=seed, arguments=arguments, root=root)


def load_into(
    model: nn.Module,
    source: Path | Sequence[Path],
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Patterns = (),
    on_mismatch: str | Mapping[str, str] | Sequence[str] = (),
    on_missing: str = "init",
    require: Patterns = (),
    strict: bool = False,
    root: str | None = None,
) -> Plan:
    """Load one or more sources into a live module by the rules of ``transplant``; returns the plan carried out.

    What no source gives keeps its values, and dtypes follow the module. On failure not a value, flag or tie of the
    module has changed. Raises what ``transplant`` raises.
    """
    from torch import Tensor

    from .engine import load_tensors

    target = module_destination(model)
    options = Options.of(
        include=include, exclude=exclude, rules=map, on_mismatch=on_mismatch, require=require,
        on_missing=on_missing, strict=strict,
    )  # fmt: skip
    specs = [parse_spec(os.fspath(item)) for item in _many(source)]
    plan = _plan(specs, target, options, seed=0, arguments={}, root=root)
    inputs = _inputs(plan)
    try:
        tensors = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        load_tensors(plan, inputs, tensors)
    finally:
        _close(inputs)
    return replace(plan, inputs=None)


def apply(
    plan: Plan | Path,
    output: Path,
    *,
    to: str | None = None,
    max_shard_size: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Carry a plan (or the file of one) out: write ``output`` whole, or leave everything as it was.

    The format follows the suffix, or ``to`` ("safetensors", "pth"); a folder, or ``max_shard_size`` as in "5GB",
    gives shards with an index. ``progress`` is called with (bytes done, bytes in all).

    Raises PlanError where an input changed since the plan, OutputError where the output exists (without
    ``force``), is an input or cannot be written, FormatError where an input fails its checksum.
    """
    from .engine import OutputOptions, carry_out
    from .recipe import make_recipe

    if not isinstance(plan, Plan):
        plan = _read_plan(plan)
    inputs = _inputs(plan)
    try:
        options = OutputOptions(os.fspath(output), to or "", max_shard_size or "", force)
        recipe = make_recipe(plan, options.path.rstrip("/"), __version__)
        return carry_out(plan, inputs, options, recipe, progress)
    finally:
        _close(inputs)


def verify(
    output: Path,
    *,
    plan: Plan | Path | None = None,
    sources: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check an output against its recipe (and ``plan``): checksums, then every copied and computed tensor bit for bit.

    ``sources`` gives new places to sources by name. Tensors whose source is gone are NOT COMPARED, and said to be.
    An output so damaged that it cannot be opened is a failed verification. Raises SourceError when it is missing,
    ConfigError when there is neither recipe nor plan.
    """
    from .recipe import parse_recipe
    from .verification import expected_of_plan, expected_of_recipe, verify_output

    planned = _read_plan(plan) if plan is not None and not isinstance(plan, Plan) else plan
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(open_checkpoint(output, unwrap=False))
        except FormatError as error:  # so badly damaged that it cannot be opened
            return Verification(os.fspath(output), 0, 0, 0, failed=(Failure("", str(error)),))
        folder = os.path.dirname(os.path.abspath(os.fspath(output).rstrip("/")))
        if checkpoint.recipe is not None:
            try:
                recipe = parse_recipe(checkpoint.recipe)
            except VerifyError as error:
                return Verification(os.fspath(output), 0, 0, 0, failed=(Failure("", str(error)),))
            found, absent = _find_sources(recipe.sources, folder, sources or {}, stack)
            expected = expected_of_recipe(recipe, found, absent)
        elif planned is not None:
            found, absent = _find_sources(planned.sources, "", sources or {}, stack)
            expected = expected_of_plan(planned, found, absent)
        else:
            raise ConfigError(
                f"{escape(os.fspath(output))} carries no recipe: ckptsurgeon did not write it.",
                hint="Hold it against a plan with --plan.",
            )
        return verify_output(checkpoint, expected, plan=planned, progress=progress)


def init_config(path: Path, *, root: str | None = None, output: Path | None = None, force: bool = False) -> str:
    """Return a destination configuration, as YAML, that declares the tensors of a checkpoint; write it to ``output``.

    Headers tell shapes and dtypes but not how a model initialises, so each tensor gets the initialiser that its
    name and shape suggest, to be reviewed. Raises OutputError where the output exists, without ``force``.
    """
    with open_checkpoint(path, root) as checkpoint:
        opaque = [key for key, info in checkpoint.items() if info.opaque]
        if opaque:
            raise FormatError(
                f"{escape(opaque[0])} of {escape(os.fspath(path))} cannot be declared: {checkpoint[opaque[0]].opaque}.",
                details=opaque,
                rule="opaque",
            )
        text = dump_yaml({"model": declare(checkpoint, checkpoint.ties)})
        if output is not None:
            from .engine import write_text

            write_text(os.fspath(output), text, inputs=checkpoint.open_files().values(), force=force)
    return text


def _rules_of(map_file: Path | None) -> list[str]:
    if map_file is None:
        return []
    try:
        with open(map_file, encoding="utf-8") as file:
            rules = rules_from_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError(f"--map-file {escape(os.fspath(map_file))} cannot be read: {why}.") from error
    if not rules:
        raise ConfigError(f"--map-file {escape(os.fspath(map_file))} holds no rule.")
    return rules


def _many(source: Path | Sequence[Path]) -> list[Path]:
    found = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not found:
        raise ConfigError("there is no source.", hint="Name at least one.")
    return found


def _arguments(**given: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, as plain data for the recipe."""
    defaults = {"on_missing": "init", "strict": False}
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, (str, bool, type(None))):
            plain: Any = value
        elif isinstance(value, Mapping):
            plain = dict(value)
        else:
            plain = list(value)
        if plain and plain != defaults.get(name):
            kept[name] = plain
    return kept


def _plan(
    specs: Sequence[SourceSpec],
    target: TargetSpec,
    options: Options,
    *,
    seed: int,
    arguments: Mapping[str, Any],
    root: str | None,
) -> Plan:
    """Open the sources, plan, and leave them open for whoever applies the plan."""
    checkpoints: list[Checkpoint] = []
    try:
        for spec in specs:
            raw = open_checkpoint(spec.uri, root, unwrap=False)
            checkpoints.append(raw.unwrapped(destination=list(target.tensors)))
        names = _names([spec.uri for spec in specs])
        views = [
            SourceView(_plan_source(name, checkpoint), checkpoint, spec.src, spec.dst, spec.exclude)
            for name, checkpoint, spec in zip(names, checkpoints, specs, strict=True)
        ]
        keeper = None
        if target.kind == "module":
            keeper = PlanSource(target.name, "", "", (), (), "destination")
        elif target.keeps:
            checkpoints.append(open_checkpoint(target.keeps, target.keeps_root or ".", unwrap=False))
            keeper = _plan_source(_names([*names, target.keeps])[-1], checkpoints[-1], role="destination")
        plan = plan_transplant(
            views,
            target,
            options,
            planned=PlanTarget(target.kind, target.name, target.config, _target_files(target)),
            keeper=keeper,
            seed=seed,
            arguments=arguments,
            metadata=_metadata(checkpoints[: len(specs)]),
            notes=[*_notes(specs, checkpoints), *target.notes],
        )
    except BaseException:
        for checkpoint in checkpoints:
            checkpoint.close()
        raise
    return replace(plan, inputs=_Open(tuple(checkpoints), target))


@dataclass(frozen=True)
class _Open:
    """The files a plan was made from, still open."""

    sources: tuple[Checkpoint, ...]
    target: TargetSpec


def _notes(specs: Sequence[SourceSpec], checkpoints: Sequence[Checkpoint]) -> list[str]:
    notes = [note for spec in specs for note in spec.notes]
    for checkpoint in checkpoints[: len(specs)]:
        notes += checkpoint.notes
        if checkpoint.stripped:
            notes.append(f"stripped {', '.join(checkpoint.stripped)} from the keys of {checkpoint.path}")
    return notes


def _names(paths: Sequence[str]) -> list[str]:
    """Return what messages call each path: its last part, all of it where that is not enough."""
    names: list[str] = []
    for path in paths:
        short = os.path.basename(os.path.normpath(path)) if "://" not in path else path
        name = short if short not in names else path
        number = 2
        while name in names:
            name, number = f"{path} ({number})", number + 1
        names.append(name)
    return names


def _plan_source(name: str, checkpoint: Checkpoint, role: str = "source") -> PlanSource:
    files = tuple(FilePrint(file.name, file.size, file.sha256, file.mtime_ns) for file in checkpoint.files)
    return PlanSource(name, checkpoint.path, checkpoint.root, checkpoint.stripped, files, role)


def _metadata(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for checkpoint in checkpoints:
        merged.update(checkpoint.metadata)
    merged.pop("format", None)
    return merged


def _target_files(target: TargetSpec) -> tuple[FilePrint, ...]:
    paths = [path for path in (target.config, *target.files) if path]
    return tuple(_file_print(path) for path in paths)


def _file_print(path: str) -> FilePrint:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = os.fstat(file.fileno())
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    return FilePrint(path, found.st_size, digest, found.st_mtime_ns)


def _read_plan(path: Path) -> Plan:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise SourceError(f"the plan {escape(os.fspath(path))} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the plan {escape(os.fspath(path))} is no JSON: {error}.") from error
    return Plan.from_json(data)


def _inputs(plan: Plan) -> Inputs:
    """Return the open inputs of a plan; raises PlanError where one is no longer what was planned with."""
    from .engine import Inputs

    if isinstance(plan.inputs, _Open) and all(_is_open(source) for source in plan.inputs.sources):
        return Inputs(plan.inputs.sources, plan.inputs.target)
    if any(source.role == "destination" and not source.path for source in plan.sources):
        raise PlanError("the plan is for a live module and cannot be written.", hint="Use load_into.")
    opened: list[Checkpoint] = []
    try:
        for source in plan.sources:
            opened.append(_reopen(source))
            _check_prints(source, opened[-1])
        for file in plan.target.files:
            now = _file_print(file.name)
            if (now.size, now.sha256) != (file.size, file.sha256):
                raise PlanError(f"{escape(file.name)} has changed since the plan.", hint="Plan again.")
        target = load_target(plan.target.config) if any(step.draws for step in plan.steps) else None
        _check_target(plan, target)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    return Inputs(tuple(opened), target)


def _is_open(checkpoint: Checkpoint) -> bool:
    return all((file.fileno() or 0) >= 0 for file in checkpoint.open_files().values())


def _reopen(source: PlanSource) -> Checkpoint:
    root = source.root or "."
    return open_checkpoint(source.path, root, unwrap=False).unwrapped(stripped=source.stripped)


def _check_prints(source: PlanSource, checkpoint: Checkpoint) -> None:
    now = {file.name: file for file in checkpoint.files}
    for file in source.files:
        found = now.get(file.name)
        same = found is not None and (found.size, found.sha256) == (file.size, file.sha256)
        if not same or (file.mtime_ns is not None and found is not None and found.mtime_ns != file.mtime_ns):
            raise PlanError(
                f"{escape(os.path.join(source.path, file.name).rstrip('/'))} has changed since the plan.",
                hint="Plan again.",
            )


def _check_target(plan: Plan, target: TargetSpec | None) -> None:
    for step in plan.steps if target is not None else ():
        wanted = target.tensors.get(step.key) if target is not None else None
        if step.draws and (wanted is None or wanted.shape != step.shape):
            raise PlanError(
                f"{escape(plan.target.config)} no longer has {escape(step.key)} as it was planned.",
                hint="Plan again.",
            )


def _close(inputs: Inputs) -> None:
    for source in inputs.sources:
        source.close()


def _find_sources(
    sources: Sequence[PlanSource], folder: str, moved: Mapping[str, Path], stack: ExitStack
) -> tuple[dict[int, Checkpoint], dict[int, str]]:
    """Open the sources that can be found and are the same; for the others, say why not."""
    names = {source.name for source in sources}
    for name in moved:
        if name not in names:
            raise ConfigError(
                f"--source {escape(name)}: the output has no such source.",
                hint=f"It has {', '.join(sorted(names))}.",
            )
    found: dict[int, Checkpoint] = {}
    absent: dict[int, str] = {}
    for index, source in enumerate(sources):
        path = os.fspath(moved[source.name]) if source.name in moved else os.path.join(folder, source.path)
        try:
            checkpoint = stack.enter_context(_reopen(replace(source, path=path)))
            _check_prints(replace(source, path=path), checkpoint)
        except SourceError:
            if source.name in moved:
                raise
            absent[index] = f"{source.name} is not at {source.path}"
        except CheckpointError as error:
            absent[index] = f"{source.name} is another file now: {error.message}"
        else:
            found[index] = checkpoint
    return found, absent
