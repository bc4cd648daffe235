"""What a PEFT folder says of its adapter: ``adapter_config.json``, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

from ..errors import ConfigError
from ..text import brief_repr, escape

__all__ = ["AdapterConfig", "parse_config"]

PATTERN, REPEATS, CHOICES, MODULE = 400, 4, 12, 400
"""Characters of a pattern, repetitions in it and characters of what it is held against: so none takes for ever."""

PREFIX = "base_model.model."
"""What PEFT calls the network: in front of a name, no other module's name ends with it."""

ENDS = r"(.*\.)?({})$"
"""How PEFT looks for a pattern at the end of a module's name."""

REMADE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take something out of the base, which is then another."""

REFUSED = {
    "layer_replication": "it repeats layers of its base",
    "target_parameters": "it is on parameters that are no layers",
    "trainable_token_indices": "it trains single tokens",
    "use_qalora": "its inputs are pooled",
    "use_bdlora": "its factors are of blocks",
    "alora_invocation_tokens": "it is switched on by tokens, so no weights are the same as it",
    "kasa_config": "its singular values are others",
    "monteclora_config": "it is drawn anew each time",
    "velora_config": "it is of another kind",
    "arrow_config": "it chooses between adapters",
}
"""Settings with which an adapter is not what its factors say, or not of a base as it is."""


@dataclass(frozen=True)
class AdapterConfig:
    """The rank and alpha of an adapter, for all modules and for some, and what else decides what its tensors mean."""

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    transposed: bool = False
    saved: tuple[str, ...] = ()
    bias: str = "none"

    def rank_of(self, module: str) -> int:
        """Return the rank that a module should have."""
        return int(_found(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return what the product of a module's factors counts."""
        rank = self.rank_of(module)
        return float(_found(self.alphas, module, self.alpha)) / (sqrt(rank) if self.rslora else rank)

    def saves(self, key: str) -> bool:
        """Whether a key is of a module that was trained as a whole, or a parameter that goes along alone."""
        return any(f".{name.removeprefix(PREFIX)}." in f".{key}." for name in self.saved)


def _found(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """Return what the first pattern says that a module ends with, as PEFT's ``get_pattern_key`` looks."""
    for pattern, value in patterns.items():
        if re.match(ENDS.format(pattern), module[-MODULE:]):
            return value
    return otherwise


def parse_config(data: Any, name: str) -> AdapterConfig:
    """Return what an adapter's configuration says; raises ConfigError for what is none, or of another kind."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{escape(name)} is no adapter's configuration.", hint="Name a folder that PEFT wrote.")
    kind = data.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"{escape(name)} has the peft_type {brief_repr(kind)}; what is merged is LORA.",
            hint="Let PEFT merge it: merge_and_unload().",
        )
    _check_meaning(data, name)
    try:
        return _parsed(data)
    except ConfigError as error:
        raise ConfigError(f"{escape(name)} {error.message}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise ConfigError(f"{escape(name)} is damaged: {type(error).__name__} {escape(str(error))}.") from error


def _check_meaning(data: Mapping[str, Any], name: str) -> None:
    for setting, why in REFUSED.items():
        if data.get(setting):
            raise ConfigError(
                f"{escape(name)} sets {setting}: {why}, which is not merged here.",
                hint="Let PEFT merge it: merge_and_unload().",
            )
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REMADE):
        raise ConfigError(
            f"{escape(name)} was initialised by {escape(start)}, which changed the base: it does not fit the original.",
            hint="Save it with path_initial_model_for_weight_conversion; or, if the base that you name is the changed "
            "one, set init_lora_weights to true.",
        )


def _parsed(data: Mapping[str, Any]) -> AdapterConfig:
    saved = data.get("modules_to_save") or ()
    return AdapterConfig(
        rank=_rank(data["r"]),
        alpha=_alpha(data["lora_alpha"]),
        ranks={_pattern(text): _rank(value) for text, value in dict(data.get("rank_pattern") or {}).items()},
        alphas={_pattern(text): _alpha(value) for text, value in dict(data.get("alpha_pattern") or {}).items()},
        rslora=_truth(data.get("use_rslora")),
        dora=_truth(data.get("use_dora")),
        transposed=_truth(data.get("fan_in_fan_out")),
        saved=tuple(map(_text, [saved] if isinstance(saved, str) else _list(saved))),
        bias=_text(data.get("bias") or "none"),
    )


def _truth(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{brief_repr(value)} is neither true nor false")
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief_repr(value)} is no text")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{brief_repr(value)} is no list")
    return value


def _rank(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"has a rank of {brief_repr(value)}, where a rank is a whole number from 1 on.",
            hint="Name the adapter as it was saved.",
        )
    return value


def _alpha(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
        raise ValueError(f"an alpha of {brief_repr(value)}")
    return float(value)


def _pattern(text: Any) -> str:
    """Return a pattern that is a regular expression; raises ValueError for one that could take for ever."""
    if not isinstance(text, str) or len(text) > PATTERN:
        raise ValueError(f"a pattern {brief_repr(text)}")
    plain = re.sub(r"\\.", "", text)
    often = sum(map(plain.count, "*+{")) > REPEATS or sum(map(plain.count, "?|")) > CHOICES
    if often or re.search(r"\)[*+{?]", plain):
        raise ValueError(f"the pattern {brief_repr(text)} repeats too much")
    re.compile(ENDS.format(text))  # as it is used: flags, and groups that are closed too early, are faults there
    return text
