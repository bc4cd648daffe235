"""The change of a checkpoint's layout that ``--layout`` asks for: to llama.cpp's, or to that of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError, PlanError
from ...planning.keys.matcher import KeyMatcher
from ...planning.keys.pattern import KeyPattern
from ...planning.llama_cpp.layout import (
    COMPUTED_THERE,
    Heads,
    LayoutChange,
    experts_of,
    to_llama_cpp,
    to_transformers,
)
from ...planning.llama_cpp.names import ARCHITECTURES, MODEL_TYPES
from ...util.text import escape, listing
from ..model_folder.folder import ModelFolder
from .configuration import described
from .rope import factors_of

__all__ = ["ARCHITECTURE", "AUTO", "LAYOUTS", "NamedLayout", "check_layout", "layout_named"]

AUTO, KEEP, GGUF, TRANSFORMERS = LAYOUTS = ("auto", "keep", "gguf", "transformers")
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class NamedLayout:
    """A change of layout, the metadata that describes it, and notes; ``is_gguf`` if it makes llama.cpp's layout."""

    change: LayoutChange = field(default_factory=lambda: LayoutChange((), (), ()))
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    is_gguf: bool = False


def check_layout(name: str | None) -> None:
    """Raise ConfigError for an unknown name of a layout."""
    if name is not None and name not in LAYOUTS:
        raise ConfigError(f"--layout {name!r:.60} is unknown.", hint=f"Use one of {', '.join(LAYOUTS)}.")


def layout_named(name: str | None, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    """Return the change of a checkpoint's layout.

    ``auto`` is ``gguf`` for a model of transformers that llama.cpp knows, and ``keep`` for any other. Raises PlanError
    if the layout of the checkpoint is not known.
    """
    if name in (None, KEEP):
        return NamedLayout()
    if name == TRANSFORMERS:
        return _from_gguf(checkpoint)
    if name == AUTO and (checkpoint.header.stored or ARCHITECTURE in checkpoint.metadata):
        return NamedLayout()
    architecture = MODEL_TYPES.get(str(folder.config.get("model_type")), "")
    if not architecture:
        return _unknown(name == AUTO, checkpoint, folder)
    return _to_gguf(architecture, checkpoint, folder)


def _unknown(is_auto: bool, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    stated = folder.config.get("model_type")
    why = f"its model_type is {escape(stated, 40)}" if isinstance(stated, str) else "it has no config.json"
    if is_auto:
        return NamedLayout(notes=(f"llama.cpp will not load the output, whose tensors keep their names: {why}",))
    raise PlanError(
        f"llama.cpp's layout of {escape(checkpoint.path)} is not known: {why}.",
        hint=f"Known are {', '.join(MODEL_TYPES)}; --layout keep keeps the names.",
    )


def _to_gguf(architecture: str, checkpoint: Checkpoint, folder: ModelFolder) -> NamedLayout:
    config = folder.config
    queries = _heads(config.get("num_attention_heads"), "num_attention_heads")
    keys = _heads(config.get("num_key_value_heads", queries), "num_key_value_heads")
    first = ARCHITECTURES[architecture].names
    ours = next(name for name, theirs in first.items() if theirs.endswith("attn_q"))
    size = _head_size(checkpoint, ours, queries)
    factors = factors_of(config, architecture, size)
    heads = Heads(queries, keys, size)
    change = to_llama_cpp(architecture, list(checkpoint), heads, tied=folder.is_tied, factors=factors)
    layers = {key.split(".")[2] for key in checkpoint if key.startswith("model.layers.")}
    experts = experts_of(architecture, list(checkpoint))
    metadata = described(config, architecture, layers=len(layers), size=size, experts=experts)
    note = f"the tensors get llama.cpp's names and layout of the architecture {architecture}"
    return NamedLayout(change, metadata, (note,), is_gguf=True)


def _from_gguf(checkpoint: Checkpoint) -> NamedLayout:
    architecture = checkpoint.metadata.get(ARCHITECTURE, "")
    if architecture not in ARCHITECTURES:
        has = f"its architecture is {escape(architecture, 40)}" if architecture else f"it has no {ARCHITECTURE}"
        raise PlanError(
            f"the layout that transformers has for {escape(checkpoint.path)} is not known: {has}.",
            hint=f"Known are {', '.join(ARCHITECTURES)}; --layout keep keeps the names.",
        )
    queries = _heads(checkpoint.metadata.get(f"{architecture}.attention.head_count"), "attention.head_count")
    said = checkpoint.metadata.get(f"{architecture}.attention.head_count_kv", str(queries))
    size = _head_size(checkpoint, "blk.{n}.attn_q", queries)
    change = to_transformers(architecture, list(checkpoint), Heads(queries, _heads(said, "head_count_kv"), size))
    notes = [f"the tensors get the names of transformers, from the architecture {architecture}"]
    computed = [one for one in change.exclude if one in COMPUTED_THERE]
    if computed:
        notes.append(
            f"left out: {listing(computed)}, which transformers computes: config.json needs the fields that scale the "
            "rotary embedding"
        )
    return NamedLayout(change, None, tuple(notes))


def _heads(stated: Any, name: str) -> int:
    number = int(stated) if isinstance(stated, str) and stated.isdigit() else stated
    if type(number) is not int or not 0 < number < 1 << 20:
        raise PlanError(
            f"the number of heads ({name}) is {escape(str(stated), 40)}, and must be one number.",
            hint="Keep the names of the tensors: --layout keep.",
        )
    return number


def _head_size(checkpoint: Checkpoint, module: str, heads: int) -> int:
    """Return the rows of a head of queries; raises PlanError if the weights do not have so many heads."""
    found = KeyMatcher([KeyPattern.given(f"{module}.weight", "")]).hits(list(checkpoint))[0]
    rows = {checkpoint[key].shape[0] for key in found}
    if len(rows) != 1 or min(rows) % (2 * heads):
        raise PlanError(
            f"the queries of {escape(checkpoint.path)} have {sorted(rows) or 'no'} rows, which are not {heads} heads.",
            hint="Keep the names of the tensors: --layout keep.",
        )
    return min(rows) // heads
