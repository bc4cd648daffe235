"""An adapter in one line: its kind, rank and alpha, what it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..analysis.inspect.adapter import AdapterSettings
from ..util.text import count, escape, listing

__all__ = ["adapter_text"]

SHOWN = 4
ALL = 1 << 30


def adapter_text(adapter: AdapterSettings, *, full: bool = False) -> str:
    """Return ``LoRA, rank 8, alpha 16, 2 target modules (q_proj, v_proj), base org/model``."""
    shown = ALL if full else SHOWN
    words = [_kind(adapter)]
    if adapter.peft_type == "LORA" or adapter.rank is not None:
        words.append(f"rank {_number(adapter.rank)}{_others(adapter.ranks, shown)}")
    if adapter.peft_type == "LORA" or adapter.alpha is not None:
        words.append(f"alpha {_number(adapter.alpha)}{_others(adapter.alphas, shown)}{_rs(adapter)}")
    if adapter.target_modules:
        number = count(len(adapter.target_modules), "target module")
        words.append(f"{number} ({_listed(adapter.target_modules, shown)})")
    words.append(f"base {escape(adapter.base_model)}" if adapter.base_model else "its base is not named")
    return ", ".join(words)


def _kind(adapter: AdapterSettings) -> str:
    if adapter.peft_type == "LORA":
        return "DoRA" if adapter.dora else "LoRA"
    return f"PEFT's {escape(adapter.peft_type, 40)}"


def _rs(adapter: AdapterSettings) -> str:
    return " over the root of the rank" if adapter.rslora else ""


def _number(value: float | None) -> str:
    return "not given" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _others(values: Mapping[str, float], shown: int) -> str:
    """Return the numbers of modules that have others."""
    if not values:
        return ""
    return f" ({_listed([f'{key}: {_number(value)}' for key, value in values.items()], shown)})"


def _listed(items: Sequence[str], shown: int) -> str:
    return listing(items, shown, where=" (-v lists all)")
