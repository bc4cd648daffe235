"""The settings of an adapter, as the configuration of PEFT has them: rank, alpha, target modules, base.

The file is untrusted: any field may have any type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

__all__ = ["AdapterSettings", "adapter_settings"]

CHARACTERS = 500
ENTRIES = 1000
"""At most ``CHARACTERS`` characters of a string, and ``ENTRIES`` entries of a list or mapping, are kept."""
NUMBER = 2**53
"""JSON readers with float64 numbers, such as JavaScript, may round integers of at least this size."""

NAMES = {
    "LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr", "IA3": "(IA)3", "VERA": "VeRA", "GLORA": "GLoRA",
    "FULL": "whole differences",
}  # fmt: skip
"""{kind of adapter: its name in texts}; the names of other kinds are the same."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of a PEFT adapter. Missing fields, and fields of a wrong type, are None or empty.

    ``rank`` and ``alpha`` are the values for most modules. ``ranks`` and ``alphas`` map PEFT's patterns of module names
    to other values. ``target_modules`` are suffixes of the names of the adapted modules, or a single regular expression
    that matches these names. ``modules`` is the number of adapted modules if the settings were read from the keys of an
    adapter without a configuration, else None.
    """

    peft_type: str
    rank: int | None = None
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    target_modules: tuple[str, ...] = ()
    dora: bool = False
    rslora: bool = False
    modules: int | None = None

    @property
    def kind(self) -> str:
        """The name of the kind of adapter, for texts: ``LoRA``, ``DoRA`` or ``LoHa``; it may be any string."""
        return "DoRA" if self.peft_type == "LORA" and self.dora else NAMES.get(self.peft_type, self.peft_type)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {
            "peft_type": self.peft_type,
            "rank": self.rank,
            "rank_pattern": dict(self.ranks),
            "alpha": self.alpha,
            "alpha_pattern": dict(self.alphas),
            "base_model": self.base_model,
            "target_modules": list(self.target_modules),
            "use_dora": self.dora,
            "use_rslora": self.rslora,
            "modules": self.modules,
        }


def adapter_settings(data: object) -> AdapterSettings | None:
    """Return the settings of a parsed adapter_config.json; None if it has no ``peft_type``."""
    kind = _text(data.get("peft_type")) if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not kind:
        return None
    return AdapterSettings(
        peft_type=kind,
        rank=_whole(data.get("r")),
        alpha=_number(data.get("lora_alpha")),
        ranks={key: rank for key, value in _table(data, "rank_pattern") if (rank := _whole(value)) is not None},
        alphas={key: alpha for key, value in _table(data, "alpha_pattern") if (alpha := _number(value)) is not None},
        base_model=_text(data.get("base_model_name_or_path")) or None,
        target_modules=_texts(data.get("target_modules")),
        dora=data.get("use_dora") is True,
        rslora=data.get("use_rslora") is True,
    )


def _text(value: object) -> str | None:
    return value[:CHARACTERS] if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text for one in values[:ENTRIES] if (text := _text(one)))


def _table(data: Mapping[Any, Any], name: str) -> list[tuple[str, object]]:
    found = data.get(name)
    entries = islice(found.items(), ENTRIES) if isinstance(found, Mapping) else ()
    return [(str(key)[:CHARACTERS], value) for key, value in entries]


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 < value < NUMBER else None


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return value if abs(value) < NUMBER else None  # False for NaN and infinities
