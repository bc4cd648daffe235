"""``transplant``: sources, a destination and rules become a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..configs import load_target
from ..errors import ConfigError
from ..keys import rules_from_lines
from ..plan import Plan, PlanSource, PlanTarget
from ..planners import Options, SourceView, plan_transplant
from ..sources import SourceSpec, parse_spec
from ..tensors import TargetSpec
from ..text import escape
from .inputs import OpenInputs, names_of, plan_source, target_files
from .types import Mismatch, Path, Patterns, Sources

__all__ = ["plan_into", "specs_of", "transplant"]


def transplant(
    source: Sources,
    destination: Path,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    map: Patterns = (),
    map_file: Path | None = None,
    on_mismatch: Mismatch = (),
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
    return plan_into(specs_of(source), target, options, seed=seed, arguments=arguments, root=root)


def plan_into(
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
        names = names_of([spec.uri for spec in specs])
        views = [
            SourceView(plan_source(name, checkpoint), checkpoint, spec.src, spec.dst, spec.exclude)
            for name, checkpoint, spec in zip(names, checkpoints, specs, strict=True)
        ]
        keeper = None
        if target.kind == "module":
            keeper = PlanSource(target.name, "", "", (), (), "destination")
        elif target.keeps:
            checkpoints.append(open_checkpoint(target.keeps, target.keeps_root or ".", unwrap=False))
            keeper = plan_source(names_of([*names, target.keeps])[-1], checkpoints[-1], role="destination")
        plan = plan_transplant(
            views,
            target,
            options,
            planned=PlanTarget(target.kind, target.name, target.config, target_files(target)),
            keeper=keeper,
            seed=seed,
            arguments=arguments,
            metadata=_metadata(checkpoints[: len(specs)]),
            notes=[*_notes(specs, checkpoints), *(f"ran {code}" for code in target.ran), *target.notes],
        )
    except BaseException:
        for checkpoint in checkpoints:
            checkpoint.close()
        raise
    return replace(plan, inputs=OpenInputs(tuple(checkpoints), target))


def _notes(specs: Sequence[SourceSpec], checkpoints: Sequence[Checkpoint]) -> list[str]:
    notes = [note for spec in specs for note in spec.notes]
    for checkpoint in checkpoints[: len(specs)]:
        notes += checkpoint.notes
        if checkpoint.stripped:
            notes.append(f"stripped {', '.join(checkpoint.stripped)} from the keys of {checkpoint.path}")
    return notes


def _metadata(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for checkpoint in checkpoints:
        merged.update(checkpoint.metadata)
    merged.pop("format", None)
    return merged


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


def specs_of(source: Sources) -> list[SourceSpec]:
    """Return one spec for each source; raises ConfigError where there is none."""
    found = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not found:
        raise ConfigError("there is no source.", hint="Name at least one.")
    return [parse_spec(os.fspath(item)) for item in found]
