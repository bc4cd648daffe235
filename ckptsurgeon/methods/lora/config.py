"""The configuration of a PEFT adapter, ``adapter_config.json``, as data."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from .targets import PatternTable, Targets, linear_targets_of, targets_of

__all__ = [
    "CONVERTED",
    "MERGE_WITH_PEFT",
    "AdapterConfig",
    "check_type",
    "damage_of",
    "damaged",
    "number_of",
    "parse_config",
    "refusal_of",
    "selects",
]

PREFIX = "base_model.model."
"""The prefix of all module names in PEFT.

PEFT compares the ends of names, so that a name that begins with this prefix matches only one module."""

REMADE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of init_lora_weights with which PEFT changes the base: it subtracts the adapter's initial values."""

REFUSED = {
    "layer_replication": "it repeats layers of its base",
    "target_parameters": "it changes parameters that are not layers",
    "trainable_token_indices": "it trains single tokens",
    "use_qalora": "it pools its inputs",
    "use_bdlora": "its factors consist of blocks",
    "alora_invocation_tokens": "it acts only after certain tokens of the input, but merged weights always act",
    "kasa_config": "its singular values are changed",
    "monteclora_config": "its values are sampled anew each time",
    "velora_config": "it is another kind of adapter",
    "arrow_config": "it chooses between adapters",
}
"""{setting with which an adapter cannot be merged: the reason, for messages}."""

MERGE_WITH_PEFT = (
    "Merge it with PEFT: merge_and_unload(). ckpt lora extract then makes a LoRA from the merged model and its base."
)
AND_TOKENS = " To keep the trained tokens in it, give --save-modules: an embedding is not made low-rank."
CONVERTED = {
    "LOHA": "Make it a LoRA with ckpt lora convert --to peft --rank 16, or merge it with ckpt lora merge.",
    "LOKR": "Make it a LoRA with ckpt lora convert --to peft --rank 16, or merge it with ckpt lora merge.",
    "OFT": "Merge it with ckpt lora merge; ckpt lora extract makes a LoRA from the merged model and its base.",
}
"""{kind of adapter of PEFT: advice for the user}"""
PROMPTS = (
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING",
)  # fmt: skip
"""Kinds of adapters of PEFT that add inputs or attention, and change no weight of their base."""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a PEFT adapter that are needed to interpret its tensors.

    ``rank`` and ``alpha`` are for all modules, except modules that ``ranks`` and ``alphas`` match. ``saved`` is
    modules_to_save, and ``transposed`` is fan_in_fan_out. If target_modules is "all-linear", ``targets`` is None and
    ``linear`` has the other settings that select modules. ``data`` are all fields as they are in the file.
    """

    rank: int
    alpha: float
    ranks: PatternTable = field(default_factory=PatternTable)
    alphas: PatternTable = field(default_factory=PatternTable)
    rslora: bool = False
    dora: bool = False
    transposed: bool = False
    saved: tuple[str, ...] = ()
    bias: str = "none"
    lora_bias: bool | None = None
    targets: Targets | None = None
    linear: Targets | None = None
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's factors, as the configuration gives it."""
        return int(self.ranks.of(module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the scale by which the product of a module's factors is multiplied."""
        rank = self.rank_of(module)
        return float(self.alphas.of(module, self.alpha)) / (sqrt(rank) if self.rslora else rank)

    def saves(self, key: str) -> bool:
        """Return whether ``key`` is a module that modules_to_save selects, or a tensor inside such a module."""
        return any(selects(name, key) for name in self.saved)


def selects(name: str, key: str) -> bool:
    """Return whether ``name`` in modules_to_save selects the module ``key``, or a module that contains ``key``.

    PEFT saves every module whose name ends with ``name``: "norm" selects "layers.0.input_layernorm", too.
    """
    return f"{name}." in f"{PREFIX}{key.removeprefix(PREFIX)}."


def parse_config(data: Any, name: str, taken: str = "LORA") -> AdapterConfig:
    """Return an adapter's configuration; raises ConfigError if it is not valid, or is for another kind of adapter.

    ``name`` is the name of the file in messages, and ``taken`` the kinds of adapters that can be used.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{escape(name)} is not the configuration of an adapter: it is not a JSON object.",
            hint="Give a folder that PEFT wrote.",
        )
    check_type(data, name, taken)
    _check_meaning(data, name)
    try:
        return _parsed(data)
    except ConfigError as error:
        raise ConfigError(f"{escape(name)}: {error.message}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise damaged(name, str(error)) from error


def damaged(name: str, why: str) -> ConfigError:
    """Return the error for the configuration file ``name`` with a wrong value; ``why`` is the fault."""
    return ConfigError(
        f"{escape(name)} is damaged: {escape(why)}.", hint="Save the adapter again, or fetch its configuration again."
    )


def check_type(data: Mapping[str, Any], name: str, taken: str = "LORA") -> None:
    """Raise ConfigError if a configuration is for another kind of adapter than LoRA.

    ``name`` is the name of its file, and ``taken`` are the kinds of adapters that can be used, for the message.
    """
    kind = data.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"the adapter of {escape(name)} has the peft_type {brief_repr(kind)}; only {taken} can be used here.",
            hint="It changes no weight of its base, so it cannot be merged: load it with PEFT, with its base."
            if kind in PROMPTS
            else CONVERTED.get(str(kind), MERGE_WITH_PEFT),
        )


def damage_of(data: Any, name: str) -> str:
    """Return the reason why the configuration ``data`` is invalid; '' if it is valid, or is not for a LoRA adapter.

    The result is also '' if the configuration has a setting that ckpt cannot merge: ``refusal_of`` gives the reason.
    ``name`` is the name of the file in messages.
    """
    if not isinstance(data, Mapping) or data.get("peft_type") != "LORA":
        return ""
    if refusal_of(data, name):
        return ""
    try:
        parse_config(data, name)
    except ConfigError as error:
        return error.message
    return ""


def refusal_of(data: Mapping[str, Any], name: str) -> str:
    """Return which setting of the configuration ``data`` ckpt cannot merge, and why; '' if there is no such setting.

    ``name`` is the name of the file in messages.
    """
    try:
        _check_meaning(data, name)
    except ConfigError as error:
        return error.message.removesuffix(".")
    return ""


def _check_meaning(data: Mapping[str, Any], name: str) -> None:
    for setting, why in REFUSED.items():
        if data.get(setting):
            raise ConfigError(
                f"{escape(name)} sets {setting}, so ckpt cannot use the adapter: {why}.",
                hint=f"{MERGE_WITH_PEFT}{AND_TOKENS if setting == 'trainable_token_indices' else ''}",
            )
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REMADE):
        raise ConfigError(
            f"{escape(name)} has init_lora_weights {escape(start)}, which changed the base model: "
            "the adapter fits only the changed base.",
            hint="Save the adapter with path_initial_model_for_weight_conversion. Or give the changed base model, and "
            f"set init_lora_weights to true in {escape(name)}.",
        )


def _parsed(data: Mapping[str, Any]) -> AdapterConfig:
    saved = data.get("modules_to_save") or ()
    missing = next((name for name in ("r", "lora_alpha") if name not in data), "")
    if missing:
        raise ConfigError(
            f"the field {missing} is missing.",
            hint=f'Add "{missing}": 8 if the adapter was trained with 8, which is PEFT\'s default.',
        )
    return AdapterConfig(
        rank=_rank(data["r"]),
        alpha=number_of("lora_alpha", data["lora_alpha"]),
        ranks=PatternTable({text: _rank(value) for text, value in dict(data.get("rank_pattern") or {}).items()}),
        alphas=PatternTable(
            {text: number_of("alpha_pattern", value) for text, value in dict(data.get("alpha_pattern") or {}).items()}
        ),
        rslora=_truth(data, "use_rslora"),
        dora=_truth(data, "use_dora"),
        transposed=_truth(data, "fan_in_fan_out"),
        saved=tuple(_text("modules_to_save", one) for one in ([saved] if isinstance(saved, str) else _list(saved))),
        bias=_text("bias", data.get("bias") or "none"),
        lora_bias=_truth(data, "lora_bias") if data.get("lora_bias") is not None else None,
        targets=targets_of(data),
        linear=linear_targets_of(data),
        data=data,
    )


def _truth(data: Mapping[str, Any], field: str) -> bool:
    value = data.get(field)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{field} is {brief_repr(value)}, which is neither true nor false")
    return bool(value)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{field} has {brief_repr(value)}, which is not a string")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"modules_to_save is {brief_repr(value)}, which is not a list")
    return value


def _rank(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"the rank {brief_repr(value)} is not a whole number of 1 or more.",
            hint="Use the configuration that was saved with the adapter.",
        )
    return value


def number_of(field: str, value: Any) -> float:
    """Return the value of a field; raises ValueError if it is not a finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{field} has {brief_repr(value)}, which is not a finite number")
    return float(value)
