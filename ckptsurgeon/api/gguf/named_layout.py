"""The values of ``--layout``, and what a change of layout does to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import ConfigError
from ...planning.llama_cpp.layout import LayoutChange

__all__ = ["ARCHITECTURE", "AUTO", "KEEP", "LAYOUTS", "TRANSFORMERS", "NamedLayout", "check_layout"]

AUTO, KEEP, GGUF, TRANSFORMERS = LAYOUTS = ("auto", "keep", "gguf", "transformers")
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class NamedLayout:
    """A change of layout, the metadata that describe the new layout, and notes.

    ``is_gguf`` is true if the new layout is llama.cpp's. ``without`` has the names of metadata entries that are left
    out, because they do not describe the changed tensors.
    """

    change: LayoutChange = field(default_factory=lambda: LayoutChange((), (), ()))
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    is_gguf: bool = False
    without: tuple[str, ...] = ()


def check_layout(name: str | None) -> None:
    """Raise ConfigError if ``name`` is not None and not the name of a layout."""
    if name is not None and name not in LAYOUTS:
        raise ConfigError(f"--layout {name!r:.60} is unknown.", hint=f"Use one of {', '.join(LAYOUTS)}.")
