"""Shows the merge methods."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from rich.console import Group, RenderableType
from rich.text import Text

from ..methods.merge._method import Method, Parameter
from ..methods.merge._registry import MergeMethods
from .columns import Columns

__all__ = ["methods_view"]

BASES = {
    "none": "",
    "optional": "base or none",
    "required": "needs a base",
    "model": "if given, the base is the first model",
}
"""{value of ``Method.base``: what it means for the user}"""


def methods_view(found: MergeMethods) -> RenderableType:
    """Return each method with its description, number of models, parameters and paper."""
    parts: list[RenderableType] = []
    for method in found.methods.values():
        parts.append(Text(f"  {method.name}", style="bold"))
        parts.append(Columns([["", method.summary], ["", "; ".join(_said(method))], *_origins(method)]))
    return Group(*parts)


def _origins(method: Method) -> Iterator[list[str]]:
    """Yield rows with the paper of a method, and with the implementation to which the tests compare its results."""
    yield ["", method.paper]
    if method.compared:
        yield ["", f"compared with {method.compared}"]


def _said(method: Method) -> Iterator[str]:
    least, most = method.models
    number = f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"
    yield f"{number} model{'s' if number != '1' else ''}"
    if BASES[method.base]:
        yield BASES[method.base]
    if method.passes > 1:
        yield f"up to {method.passes} passes"
    yield ", ".join(map(_parameter, method.parameters)) or "no parameters"


def _parameter(one: Parameter) -> str:
    bounds = f" {one.bounds.low:g}..{one.bounds.high:g}" if isfinite(one.bounds.high) else ""
    choices = f" {'|'.join(one.choices)}" if one.choices else ""
    default = (
        ""
        if one.default is None
        else f" = {str(one.default).lower() if isinstance(one.default, bool) else one.default}"
    )
    each = " by model" if one.each else ""
    return f"{one.name}{bounds}{choices}{each}{default}"
