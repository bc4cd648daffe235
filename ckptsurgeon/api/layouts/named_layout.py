"""The values of ``--layout``, and the result of changing a checkpoint's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import ConfigError
from ...planning.layouts.layout import LayoutChange
from ...planning.operations.perform import DerivedSource

__all__ = ["ARCHITECTURE", "AUTO", "GGUF", "KEEP", "TRANSFORMERS", "NamedLayout", "check_layout", "layout_arguments"]

AUTO, KEEP, GGUF, TRANSFORMERS = "auto", "keep", "gguf", "transformers"
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class NamedLayout:
    """A change of layout, the metadata that describe the new layout, and notes.

    ``is_gguf`` is true if the new layout is llama.cpp's. ``without`` has the names of metadata entries that are left
    out, because they do not describe the changed tensors. ``derived`` has the checkpoint after the operations of the
    change, if these were already performed on the headers to find the renaming rules.
    """

    change: LayoutChange = field(default_factory=lambda: LayoutChange((), (), ()))
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    is_gguf: bool = False
    without: tuple[str, ...] = ()
    derived: DerivedSource | None = None


def check_layout(name: str | None, heads: str | None = None, *, is_ruled: bool = False) -> None:
    """Raise ConfigError if ``name`` is neither None nor the name of a layout, or ``heads`` are not numbers of heads.

    ``is_ruled`` is true if renaming rules are given, which cannot be combined with a layout.
    """
    if is_ruled and name not in (None, KEEP):
        raise ConfigError(
            "--layout gives all tensors their names, so rules cannot be used with it.",
            hint="Leave out --map, --map-file and --ruleset, and rename the output in a second run.",
        )
    if heads is not None:
        from .settings import check_heads

        check_heads(heads)
    if name in (None, AUTO, KEEP, GGUF, TRANSFORMERS):
        return
    from ...planning.layouts.recognise import layout_names  # imports all layouts, which most commands do not need

    if name not in layout_names():
        names = dict.fromkeys((AUTO, KEEP, GGUF, *layout_names()))
        raise ConfigError(f"--layout {name!r:.60} is unknown.", hint=f"Use one of {', '.join(names)}.")


def layout_arguments(name: str | None, heads: str | None) -> dict[str, str]:
    """Return the arguments ``layout`` and ``heads`` that the user gave, as the recipe records them."""
    return {key: value for key, value in (("layout", name), ("heads", heads)) if value is not None}
