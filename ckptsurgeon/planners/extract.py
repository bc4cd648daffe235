"""The planner of ``lora extract``: an adapter that brings a base to what was tuned from it, as PEFT has it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ..errors import ConfigError, PlanError
from ..keys import KeyMatcher, unmatched
from ..plan import Factor, Input, Plan, PlanCompanion, PlanTarget, Step
from ..tensors import DTYPES, TensorInfo
from ..text import count, escape, listing, shape_text
from .options import Flag
from .select import SourceView

__all__ = ["Extraction", "check_extraction", "comparable", "plan_lora_extract"]

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
DTYPES_OF_FACTORS = ("float32", "bfloat16", "float16", "float64")

_EMBEDDING = re.compile(r"(?:.*[._])?(?:w[tp]e|shared|(?:\w*_)?embed(?:ding)?s?(?:_\w+)?)(?:\.\w+)?", re.IGNORECASE)
"""The names of modules that look rows up: nothing else tells them from layers."""


@dataclass(frozen=True)
class Extraction:
    """What was asked for: see ``lora_extract``."""

    rank: int = 16
    alpha: float | None = None
    include: tuple[Flag, ...] = ()
    exclude: tuple[Flag, ...] = ()
    embeddings: bool = False
    transposed: bool = False
    save_modules: bool = False
    dtype: str = "float32"
    seed: int = 0


def check_extraction(asked: Extraction) -> None:
    """Raise ConfigError for what no adapter can be."""
    if asked.rank < 1:
        raise ConfigError(f"--rank {asked.rank} is no rank.", hint="Use a whole number from 1 on, as in 16.")
    if asked.alpha is not None and not (isfinite(asked.alpha) and asked.alpha > 0):
        raise ConfigError(
            f"--alpha {asked.alpha} is no alpha.", hint="Use a number above zero; by default it is the rank."
        )
    if asked.dtype not in DTYPES_OF_FACTORS:
        raise ConfigError(f"--dtype {asked.dtype} is none of factors.", hint=f"Use {', '.join(DTYPES_OF_FACTORS)}.")
    if not 0 <= asked.seed < 2**63:
        raise ConfigError(f"--seed {asked.seed} is no seed.", hint="Use a whole number from 0 on.")


def comparable(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Whether the values of two tensors can be held against each other."""
    kinds = [DTYPES[one.dtype] for one in (ours, theirs)]
    alike = ours.dtype == theirs.dtype or all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return alike and ours.shape == theirs.shape


@dataclass
class _Sorted:
    """The keys that differ: those that become factors, those that are saved, and those that are named."""

    factored: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def plan_lora_extract(
    tuned: SourceView,
    base: SourceView,
    differing: Collection[str],
    asked: Extraction,
    *,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan an adapter of those keys of ``tuned`` that differ from the base's; ``tuned`` is the first source.

    Raises PlanError where nothing differs, or nothing of it can be in an adapter, PatternError for a pattern that
    matches nothing.
    """
    check_extraction(asked)
    for flag in (*asked.include, *asked.exclude):
        if not KeyMatcher([flag.pattern]).hits(tuned.tensors)[0]:
            raise unmatched(str(flag), flag.pattern, list(tuned.tensors), "source")
    found = _sorted(tuned.tensors, base.tensors, differing, asked)
    _check_any(found, tuned, base)
    steps = [step for key in found.factored for step in _factors(key, tuned.tensors[key], base.tensors[key], asked)]
    steps += [_saved(key, _saved_name(key, found), tuned.tensors[key]) for key in (*found.biases, *found.saved)]
    config = json.dumps(_config(found, tuned.tensors, base.source.name, asked), indent=2, sort_keys=True) + "\n"
    data = config.encode("utf-8", "surrogatepass")
    companion = PlanCompanion("adapter_config.json", len(data), hashlib.sha256(data).hexdigest(), text=config)
    return Plan(
        verb="lora extract",
        sources=(tuned.source, base.source),
        target=PlanTarget("edit", "an adapter", "", companions=(companion,), weights=WEIGHTS),
        steps=tuple(steps),
        unexpected=tuple((0, key) for key in found.left),
        seed=asked.seed,
        arguments=arguments or {},
        notes=(*notes, *_left_out(found.left, asked)),
    )


def _sorted(
    tuned: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], differing: Collection[str], asked: Extraction
) -> _Sorted:
    include = KeyMatcher([flag.pattern for flag in asked.include])
    exclude = KeyMatcher([flag.pattern for flag in asked.exclude])
    found, rest = _Sorted(), []
    for key in differing:
        chosen = (not asked.include or include.match(key)) and not exclude.match(key)
        if chosen and _is_low_rank(key, tuned[key], base.get(key), asked):
            found.factored.append(key)
        elif chosen and asked.save_modules:
            rest.append(key)
        else:
            found.left.append(key)
    _save(found, rest, tuned)
    return found


def _is_low_rank(key: str, info: TensorInfo, base: TensorInfo | None, asked: Extraction) -> bool:
    """Whether a tensor is a matrix that a layer has, or an embedding where they are asked for."""
    if base is None or base.shape != info.shape or len(info.shape) != 2 or 0 in info.shape:
        return False
    kinds = [DTYPES[one.dtype] for one in (info, base)]
    plain = key.endswith(".weight") and all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return plain and (asked.embeddings or not _is_embedding(key))


def _is_embedding(key: str) -> bool:
    return _EMBEDDING.fullmatch(_module(key)) is not None


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _save(found: _Sorted, rest: Sequence[str], tuned: Mapping[str, TensorInfo]) -> None:
    """Sort what is saved: biases of layers that have factors, whole modules; what PEFT cannot save is left."""
    layers = {_module(key) for key in found.factored}
    inner = {_module(module) for module in map(_module, tuned) if module}
    modules = dict.fromkeys(map(_module, rest))
    for key in rest:
        module = _module(key)
        if module in layers and key.endswith(".bias"):
            found.biases.append(key)
        elif not module or module in layers or module in inner:
            found.left.append(key)
    whole = [module for module in modules if module and module not in layers and module not in inner]
    found.modules = whole
    found.saved = [key for key in tuned if _module(key) in set(whole)]


def _check_any(found: _Sorted, tuned: SourceView, base: SourceView) -> None:
    ours, theirs = escape(tuned.source.name), escape(base.source.name)
    if not (found.factored or found.left or found.saved):
        raise PlanError(f"{ours} and {theirs} hold the same values: there is nothing to extract.")
    if not found.factored:
        raise PlanError(
            f"nothing of what differs between {ours} and {theirs} can be of low rank: "
            f"{listing([*found.left, *found.saved])}.",
            hint="Widen --include, or use --embeddings.",
            details=[*found.left, *found.saved],
        )


def _left_out(left: Sequence[str], asked: Extraction) -> list[str]:
    if not left:
        return []
    hint = "" if asked.save_modules else "; --save-modules saves what is no matrix"
    return [f"{count(len(left), 'tensor')} that differ are not in the adapter: {listing(left, where='')}{hint}"]


def _scale(asked: Extraction) -> float:
    return 1.0 if asked.alpha is None else asked.alpha / asked.rank


def _lies(key: str, asked: Extraction) -> bool:
    """Whether a weight is (in, out): that of an embedding always is."""
    return asked.transposed or _is_embedding(key)


def _factors(key: str, ours: TensorInfo, theirs: TensorInfo, asked: Extraction) -> list[Step]:
    """Return the steps of a weight's two factors, which follow each other: they are made at once."""
    module, rank, embedding = _module(key), min(asked.rank, *ours.shape), _is_embedding(key)
    names = (
        {"A": "lora_embedding_A", "B": "lora_embedding_B"}
        if embedding
        else {"A": "lora_A.weight", "B": "lora_B.weight"}
    )
    made = []
    for part, name in names.items():
        factor = Factor(part, rank, _scale(asked), _lies(key, asked), asked.seed)
        made.append(
            Step(
                f"{PREFIX}{module}.{name}", "factor", asked.dtype, factor.shape(ours.shape), 0, key, ours.dtype,
                ours.shape, rule=f"rank {rank} of {shape_text(ours.shape)}",
                more=(Input(1, key, theirs.dtype, theirs.shape),), factor=factor,
            )
        )  # fmt: skip
    return made


def _saved_name(key: str, found: _Sorted) -> str:
    """Return the name that PEFT gives a tensor that is saved whole: a layer with factors wraps what it was."""
    module, _, last = key.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if key in found.biases else f"{PREFIX}{key}"


def _saved(key: str, name: str, info: TensorInfo) -> Step:
    return Step(name, "copy", info.dtype, info.shape, 0, key, info.dtype, info.shape, rule="--save-modules")


def _config(found: _Sorted, tuned: Mapping[str, TensorInfo], base: str, asked: Extraction) -> dict[str, Any]:
    """Return what PEFT is to know: targets by their whole names, other ranks where a matrix is smaller."""
    modules = {_module(key): min(asked.rank, *tuned[key].shape) for key in found.factored}
    smaller = {module: rank for module, rank in modules.items() if rank != asked.rank}
    alpha = asked.rank if asked.alpha is None else asked.alpha
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": asked.rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{_exact(module)}": rank for module, rank in smaller.items()},
        "alpha_pattern": {f"^{_exact(module)}": _scale(asked) * rank for module, rank in smaller.items()},
        "target_modules": _targets(list(modules), tuned),
        "modules_to_save": found.modules or None,
        "bias": "lora_only" if found.biases else "none",
        "fan_in_fan_out": asked.transposed,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _exact(module: str) -> str:
    return re.escape(module)


def _targets(modules: Sequence[str], tuned: Mapping[str, TensorInfo]) -> list[str] | str:
    """Return the names of layers, or, where others end with one of them, an expression that is these alone."""
    chosen = set(modules)
    others = {_module(key) for key in tuned} - chosen
    tails = {other[at + 1 :] for other in others for at in range(len(other)) if other[at] == "."}
    return "|".join(map(_exact, modules)) if tails & chosen else list(modules)
