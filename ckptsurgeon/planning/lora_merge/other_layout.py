"""A hint for an adapter that has the names of another layout of its base, such as diffusers' instead of ldm's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...util.text import escape
from ..layouts.layout import Layout
from ..layouts.recognise import recognised
from ..plan.files import SourceView

__all__ = ["other_layout_hint"]

_PREFIX = re.compile(
    r"(model\.diffusion_model|diffusion_model|unet|transformer|text_encoder(_\d)?|cond_stage_model\.transformer"
    r"|conditioner\.embedders\.0\.transformer)\."
)
"""The prefixes of a pipeline's models, which an adapter and its base need not have in common."""


def other_layout_hint(lacking: Sequence[str], adapter: str, base: SourceView, *, merging: bool) -> str:
    """Return the commands for an adapter with the names of another layout of the base; '' if it has other names.

    ``lacking`` are the names of the modules that the base lacks; dots may be underscores. If ``merging``, the adapter
    shall be merged; otherwise only the names of the base are needed.
    """
    modules = [_PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name for name in lacking]
    for family, here in recognised(base.tensors):
        if _has_all(here, modules):
            continue  # the adapter is for more layers
        others = (one for one in family.layouts if one.name != here.name and not one.only_written)
        there = next((one for one in others if _has_all(one, modules)), None)
        if there is not None:
            given = escape(base.source.in_commands)
            convert = f"ckpt convert {given} --layout {there.name} -o base.safetensors"
            lead = f"The adapter has the names of the layout {there.name}, {given} those of {here.name}: run {convert}"
            if not merging:
                return f"{lead}, and give base.safetensors as the base."
            return (
                f"{lead}, then ckpt lora merge base.safetensors {escape(adapter)} -o merged.safetensors, then ckpt "
                f"convert merged.safetensors --layout {here.name} -o FILE.safetensors."
            )
    return ""


def _has_all(layout: Layout, modules: Iterable[str]) -> bool:
    """Return whether a layout has names for all ``modules``."""
    names = {_expression(name) for name in (*layout.names.values(), *(change.made for change in layout.changes))}
    known = re.compile(rf"(?:{'|'.join(sorted(names - {''}))})(?:[._].+)?")
    return all(map(known.fullmatch, modules))


def _expression(name: str) -> str:
    """Return a regular expression for a name of a layout, which may have ``{n}`` for a number."""
    plain = re.escape(_PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name)
    return re.sub(r"\\\{\w+\\\}", r"\\d+", plain.removesuffix(r"\.weight")).replace(r"\.", "[._]")
