"""How several tensors become one: a method and what it is given, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Merge", "Value", "truth"]

DEVICES = ("", "cpu", "cuda")

Value: TypeAlias = "float | bool | str"
"""What a parameter of a method can be."""


@dataclass(frozen=True)
class Merge:
    """The method that merges the inputs of a step, and its parameters: a tuple where each model has its own.

    With ``base`` the last input is the base. ``compute`` is the dtype of the values that the method is given,
    ``device`` where torch computes with them ("" for numpy).
    """

    method: str
    parameters: Mapping[str, Value | tuple[Value, ...]]
    base: bool = False
    compute: str = "float32"
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in self.parameters.items()}
        where = {"device": self.device} if self.device else {}
        return {"method": self.method, "parameters": given, "base": self.base, "compute": self.compute, **where}

    @staticmethod
    def from_json(data: Any) -> Merge | None:
        """Return what plain data spells, None for none; raises TypeError, ValueError or KeyError."""
        if data is None:
            return None
        parameters = {
            str(name): tuple(map(_value, value)) if isinstance(value, list) else _value(value)
            for name, value in dict(data["parameters"]).items()
        }
        if data["compute"] not in ("float32", "float64"):
            raise ValueError(f"it computes in {data['compute']!r:.40}")
        device = data.get("device", "")
        if device not in DEVICES:
            raise ValueError(f"it computes on {device!r:.40}")
        return Merge(str(data["method"]), parameters, truth(data["base"]), str(data["compute"]), str(device))


def truth(value: Any) -> bool:
    """Return what is true or false; raises TypeError for anything else, which would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.60} is neither true nor false")
    return value


def _value(value: Any) -> Value:
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{value!r:.60} is no parameter")
    return value
