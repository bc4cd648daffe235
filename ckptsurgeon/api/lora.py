"""``lora_merge``: low-rank adapters are added to the base that they were trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, open_checkpoint
from ..configs import weights_folder_files
from ..errors import ConfigError
from ..plan import Plan
from ..planners import Options, SourceView, plan_lora_merge
from ..target import Companion, TargetSpec
from ..tensors import TensorInfo
from ..text import count
from .adapters import open_adapter
from .argument_types import checked
from .beside import with_dtype_said
from .inputs import OpenInputs, names_of, plan_source, plan_target, said_of
from .known_model import model_at
from .memory import memory_bytes, with_costs
from .planning import arguments_said
from .types import Path, Patterns, Sources

if TYPE_CHECKING:
    import torch

__all__ = ["lora_merge"]

CONFIG_BYTES = 16 << 20


@checked
def lora_merge(
    base: Path,
    adapters: Sources,
    *,
    weights: Sequence[float] | None = None,
    exclude: Patterns = (),
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
    unwrap: bool = False,
    root: str | None = None,
) -> Plan:
    """Plan a base with adapters added: W + weight * scale * B A of each, in double precision and rounded once.

    Adapters are PEFT's folders, or single files in kohya's or diffusers' spelling. ``weights`` are what each counts,
    1 if not given; ``exclude`` leaves modules of the adapters out. ``dtype`` is that of all real floating tensors of
    the output, by default the base's; ``memory`` bounds what it takes to compute, as in "512MB". A base that is a
    folder of transformers keeps its configuration and tokeniser.

    Raises ConfigError for adapters of another kind or weights that are none, PlanError where an adapter is for another
    model, PatternError for a pattern that matches nothing, and what ``open_checkpoint`` raises.
    """
    paths = [os.fspath(one) for one in ([adapters] if isinstance(adapters, (str, os.PathLike)) else adapters)]
    counts, most = _weights(weights, paths), memory_bytes(memory)
    options = Options.of(exclude=exclude, dtype=str(dtype) if dtype is not None else None)
    opened: list[Checkpoint] = []
    try:
        opened.append(open_checkpoint(base, root, unwrap=unwrap))
        names = names_of([os.fspath(base), *paths])
        target = _target(os.fspath(base), names[0])
        views = [open_adapter(*one, opened) for one in zip(paths, names[1:], counts, strict=True)]
        plan = plan_lora_merge(
            SourceView(plan_source(names[0], opened[0]), opened[0]),
            [view for view, _ in views],
            model=model_at(os.fspath(base), opened[0]),
            dtype=options.dtype,
            exclude=options.exclude,
            target=plan_target(target),
            arguments={
                **arguments_said(exclude=exclude, dtype=options.dtype, unwrap=unwrap, root=root),
                **({"weights": counts} if weights is not None else {}),
            },
            metadata=opened[0].metadata,
            notes=said_of(opened),
        )
        inputs = OpenInputs(tuple(opened), None, tuple(path for _, path in views if path), memory=most)
        return with_costs(replace(_with_dtype(plan, target), inputs=inputs), most)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise


def _weights(weights: Sequence[float] | None, adapters: Sequence[str]) -> list[float]:
    """Return what each adapter counts; raises ConfigError where that does not fit."""
    if not adapters:
        raise ConfigError("there is no adapter.", hint="Name at least one behind the base.")
    given = [1.0] * len(adapters) if weights is None else [_number(one) for one in weights]
    if len(given) != len(adapters):
        raise ConfigError(
            f"there are {count(len(adapters), 'adapter')} and {count(len(given), 'weight')}.",
            hint="Give one to each, as in --weights 0.7,0.3.",
        )
    wrong = next((one for one in given if not isfinite(one)), None)
    if wrong is not None:
        raise ConfigError(f"--weights: {wrong} is no weight.", hint="Use a finite number, as in 0.7.")
    return given


def _target(base: str, name: str) -> TargetSpec:
    """Return the output as far as it is not tensors: what lies beside the weights of a folder goes along."""
    companions = weights_folder_files(base) if os.path.isdir(base) else ()
    paths = tuple(one.path for one in companions)
    return TargetSpec("edit", name, {}, companions=tuple(map(_readable, companions)), files=paths)


def _readable(companion: Companion) -> Companion:
    """Return a configuration as its text, since it says what dtype the weights have; anything else stays a copy."""
    if companion.name != "config.json":
        return companion
    try:
        with open(companion.path, encoding="utf-8") as file:
            text = file.read(CONFIG_BYTES)
        return Companion(companion.name, text=text) if isinstance(json.loads(text), dict) else companion
    except (OSError, ValueError, RecursionError):
        return companion


def _with_dtype(plan: Plan, target: TargetSpec) -> Plan:
    """Return a plan whose config.json names the dtype of its weights, where another than the base's was asked for."""
    tensors = {step.key: TensorInfo(step.source_dtype, step.shape) for step in plan.steps}
    return with_dtype_said(plan, replace(target, tensors=tensors))


def _number(value: float) -> float:
    """Return a number in double precision, an integer that it does not hold as infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf
