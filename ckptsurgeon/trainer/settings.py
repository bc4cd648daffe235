"""The ``train:`` section of a configuration: how the model that it describes is trained."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..errors import ConfigError
from ..text import brief_repr, escape

__all__ = ["Data", "Features", "Named", "Settings", "check_section", "settings_of"]

Named = str | Mapping[str, Any]
"""What clips or examples come from: a manifest, ``my_data.py:function``, or an entry with ``_target_``."""


@dataclass(frozen=True)
class Data:
    """Where the clips are: manifests of each split, in any format that ``manifests/`` knows, later after earlier.

    ``min_s`` and ``max_s`` are the shortest and the longest clip that is used, in seconds; the others are counted and
    left out. ``cache`` is the folder of what is computed from clips once, None to compute it each time.
    """

    train: tuple[Named, ...] = ()
    dev: tuple[Named, ...] = ()
    test: tuple[Named, ...] = ()
    tokens: str | None = None
    min_s: float = 0.0
    max_s: float = math.inf
    cache: str | None = None
    workers: int = 0


@dataclass(frozen=True)
class Features:
    """What a model that takes features is given: ``log_mel``, ``mfcc``, or ``waves`` as they are.

    Frames of ``window_s`` every ``step_s`` seconds; ``stack`` of them become one (https://arxiv.org/abs/1507.06947), so
    that a model sees ``stack * size`` numbers every ``stack * step_s`` seconds. ``centred`` takes each clip's mean off.
    """

    kind: str = "log_mel"
    size: int = 40
    rate: int = 16_000
    window_s: float = 0.025
    step_s: float = 0.010
    stack: int = 1
    centred: bool = True


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run beside the model and its initial weights.

    ``freeze`` maps key patterns to the step from which their tensors are trained (None: never), ``lr_scale`` patterns
    to what their learning rate is multiplied by. ``final_lr`` is the share of ``lr`` that a schedule ends at, ``clip``
    the largest gradient norm. ``patience`` ends a run after so many evaluations without a better ``metric``.
    ``decoding`` says by what texts are read off a model with a decoder, ``beam`` how many prefixes ``joint`` follows.
    ``nonfinite`` is how many steps whose loss or gradient is not finite may be skipped in a row.
    """

    task: str = "ctc"
    data: Data = field(default_factory=Data)
    features: Features = field(default_factory=Features)
    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: int = 0
    final_lr: float = 0.05
    clip: float | None = 5.0
    freeze: Mapping[str, int | None] = field(default_factory=dict)
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    ema: float | None = None
    precision: str = "float32"
    label_smoothing: float = 0.0
    decoding: str = "ctc"
    beam: int = 4
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    keep: int = 1
    metric: str | None = None
    patience: int | None = None
    nonfinite: int = 10
    threads: int = 1
    deterministic: bool = False


COUNTS = ("evaluate_every", "save_every", "keep", "threads")
CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bf16"),
    "decoding": ("ctc", "attention", "joint"),
    "kind": ("log_mel", "mfcc", "waves"),
}


def settings_of(section: Any, where: str) -> Settings:
    """Return the settings that a ``train:`` section spells; ``where`` names its file.

    Raises ConfigError for a field nobody knows (naming the nearest), a value of another type, and settings that
    contradict each other.
    """
    made: Settings = _read(Settings, {} if section is None else section, where, "train")
    for wrong, why in _faults(made):
        if wrong:
            raise ConfigError(f"{escape(where)}: {why}.")
    return made


def _faults(made: Settings) -> list[tuple[bool, str]]:
    return [
        (made.steps < 1, f"train.steps is {made.steps}: there is nothing to do"),
        (made.batch_size < 1 or made.accumulate < 1, "train.batch_size and train.accumulate are 1 or more"),
        (
            made.warmup >= made.steps,
            f"train.warmup {made.warmup} is not below train.steps {made.steps}: lr would never be reached; "
                "--set warmup=0 does without",
        ),
        (
            not 0 < made.lr < math.inf,
            f"train.lr is {made.lr}: it is a finite number above 0; what is not to be trained is named by freeze",
        ),
        (not 0 <= made.final_lr <= 1, f"train.final_lr is {made.final_lr}: it is a share of lr, from 0 to 1"),
        (made.ema is not None and not 0 < made.ema < 1, f"train.ema is {made.ema}, no decay between 0 and 1"),
        (len(made.betas) != 2 or not all(0 <= beta < 1 for beta in made.betas),
            f"train.betas are {list(made.betas)}: they are two numbers, each from 0 to below 1"),
        (made.clip is not None and made.clip <= 0,
            f"train.clip is {made.clip}: it is above 0, or null so as not to clip"),
        (made.data.min_s > made.data.max_s, "train.data.min_s is above train.data.max_s: that leaves nothing"),
        (made.features.stack < 1 or made.features.size < 1, "train.features.stack and size are 1 or more"),
        (made.beam < 1, f"train.beam is {made.beam}: it is 1 or more"),
        *((getattr(made, one) < 1, f"train.{one} is {getattr(made, one)}: it is 1 or more") for one in COUNTS),
    ]  # fmt: skip


def _read(kind: Callable[..., Any], section: Any, where: str, path: str) -> Any:
    """Return a dataclass of what a section spells."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{escape(where)}: {path} is {brief_repr(section, 80)}, not a section.")
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in section.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
            raise ConfigError(f"{escape(where)}: {path} has no field {brief_repr(name)}.", hint=hint)
        given[name] = _value(known[name], value, where, f"{path}.{name}")
    return kind(**given)


def _value(one: Any, value: Any, where: str, path: str) -> Any:
    """Return a value as its field's type has it."""
    if one.name in ("data", "features"):
        return _read({"data": Data, "features": Features}[one.name], value, where, path)
    reader = _READERS[one.name if one.name in _READERS else str(one.type).replace(" | None", "")]
    optional = str(one.type).endswith("| None")
    try:
        made = None if value is None and optional else reader(value)
    except (TypeError, ValueError):
        hint = "" if one.default is MISSING else f"It is {one.default!r} where nothing is said."
        meant = _MEANT[str(one.type).partition(" | ")[0]]
        raise ConfigError(f"{escape(where)}: {path} is {brief_repr(value, 80)}, not {meant}.", hint=hint) from None
    if one.name in CHOICES and made not in CHOICES[one.name]:
        raise ConfigError(
            f"{escape(where)}: {path} is {brief_repr(value, 80)}.", hint=f"Use one of {', '.join(CHOICES[one.name])}."
        )
    return made


def _whole(value: Any) -> int:
    if type(value) is float and value.is_integer():  # 1e3
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or math.isnan(value):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, [value] if isinstance(value, str) else _sequence(value)))


def _named(value: Any) -> tuple[Named, ...]:
    """Return texts, and entries with ``_target_``, which say who makes a dataset."""
    several = [value] if isinstance(value, (str, Mapping)) else _sequence(value)
    return tuple(_factory(one) if isinstance(one, Mapping) else _text(one) for one in several)


def _factory(value: Mapping[Any, Any]) -> dict[str, Any]:
    _text(value.get("_target_"))
    return {_text(name): one for name, one in value.items()}


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(_number, _sequence(value)))


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return value


def _freeze(value: Any) -> dict[str, int | None]:
    """Return patterns by the step that thaws them: a list of them is frozen for ever."""
    if isinstance(value, Mapping):
        return {_text(pattern): None if step is None else _whole(step) for pattern, step in value.items()}
    return dict.fromkeys(_texts(value))


def _scales(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    return {_text(pattern): _number(scale) for pattern, scale in value.items()}


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole,
    "float": _number,
    "str": _text,
    "bool": _truth,
    "tuple[str, ...]": _texts,
    "tuple[float, ...]": _numbers,
    "tuple[Named, ...]": _named,
    "freeze": _freeze,
    "lr_scale": _scales,
}
_MEANT = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "tuple[str, ...]": "a text or a list of texts",
    "tuple[float, ...]": "a list of numbers",
    "tuple[Named, ...]": "a text, a map with _target_, or a list of them",
    "Mapping[str, int": "a list of patterns, or a map from pattern to step",
    "Mapping[str, float]": "a map from pattern to number",
}


def check_section(section: Any, where: str) -> None:
    """Raise ConfigError for a field or a value that no ``train:`` section has; what contradicts another is not seen."""
    _read(Settings, section, where, "train")
