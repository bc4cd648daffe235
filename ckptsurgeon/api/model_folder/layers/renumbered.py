"""Changes config.json for a new list of layers: their number, their kinds, and lists with an entry for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ....planning.merge.layers import LayerList
from ....util.text import escape, listing
from ..config import Path, counted_layers
from .derived_kinds import LayerKinds, layer_kinds, model_type_in

__all__ = ["Reason", "RenumberedConfig", "differing_kinds", "kinds_stated", "not_by_layer", "part_of", "with_layers"]

Fields = Mapping[str, Any]

BY_LAYER = (
    "activation_sparsity_pattern", "attention_layers", "attention_window", "attention_windows", "attn_layers",
    "compress_ratios", "ffn_multipliers", "indexer_types", "intermediate_size", "layer_rope_theta", "layer_types",
    "layers_block_type", "mlp_layer_types", "moe_layer_freq", "no_rope_layers", "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer", "num_kv_heads", "num_query_heads", "partial_rotary_factors", "rope_theta",
    "swiglu_limits", "swiglu_limits_shared",
)  # fmt: skip
"""Fields whose value may be a list with one entry for each layer."""
FIXED = ("architectures",)
"""Fields with a list that does not describe layers, even if it is as long as the list of layers."""
BY_POSITION = re.compile(
    r"(pattern|_period|layer_freq|sparse_step|every_n_layers|(attention|layer|rope_layer)_interval|layer_step"
    r"|cross_attention_frequency|layer_group_size|first_k_dense_replace|num_dense_layers|num_sparse_\w*layers)$"
)
"""Matches names of fields by which a class may derive the kind of a layer from its position."""
NAMES_LAYERS = re.compile(r"layer|block")
_SIDES = {"vision": ("vis", "image"), "audio": ("audio",)}


class Reason(NamedTuple):
    """A reason why a configuration does not describe a new list of layers.

    ``said`` is the reason as text. ``is_certain`` is false if the configuration may nevertheless describe the list.
    """

    said: str
    is_certain: bool = False


@dataclass(frozen=True)
class RenumberedConfig:
    """A configuration for a new list of layers.

    ``is_counted`` is true if it has a field for the number of layers. The kind of a layer, such as sliding attention,
    may follow from its index. ``added`` are the fields that were set so that layers keep their kinds at their new
    indices. ``faults`` are sentences on layers whose kind changes, because no field of the configuration can express
    it.
    """

    fields: dict[str, Any]
    is_counted: bool
    added: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def with_layers(config: Fields, old: LayerList, origins: Sequence[tuple[Fields, int]]) -> RenumberedConfig:
    """Return a configuration for a new list of layers, in which each layer keeps its kind if a field can express it.

    ``old`` is the list of layers that the configuration describes now. For each new layer, ``origins`` has the
    configuration of the model that the layer comes from, and its index in that model.
    """
    paths = _chosen([path for path, value in counted_layers(config) if value == old.count], old.prefix)
    made = RenumberedConfig(dict(config), bool(paths))
    for path in paths:
        inner, above = made.fields, path[:-1]
        for name in above:
            inner[name] = dict(inner[name])
            inner = inner[name]
        inner[path[-1]] = len(origins)
        for name in BY_LAYER:
            if isinstance(inner.get(name), list) and len(inner[name]) == old.count:
                inner[name] = [_of_layer(one, (*above, name), number, inner[name]) for one, number in origins]
        _keep_kinds(made, inner, _Part(config, path), origins)
    return made


@dataclass(frozen=True)
class _Part:
    """The configuration, whole or nested, that describes a list of layers.

    ``config`` is the whole configuration, and ``path`` leads to the field with the number of layers.
    """

    config: Fields
    path: Path

    @property
    def kind(self) -> str:
        """The model type of this configuration; '' if it is not known."""
        return model_type_in(self.config, self.path[0] if self.path[1:] else "")

    @property
    def inner(self) -> Fields:
        """The fields of this configuration, which may be nested in ``config``."""
        inner = self.config.get(self.path[0]) if self.path[1:] else self.config
        return inner if isinstance(inner, Mapping) else {}

    def of(self, kinds: LayerKinds) -> list[Any]:
        """Return, for each layer, the property that ``kinds`` describes; empty if the number of layers is not known."""
        number = self.inner.get(self.path[-1])
        return kinds.of(self.inner, number) if type(number) is int else []


def _keep_kinds(made: RenumberedConfig, inner: dict[str, Any], before: _Part, origins: Sequence[Any]) -> None:
    """Set fields in ``inner`` so that each layer keeps the kind that followed from its old index.

    ``inner`` is the part of ``made.fields`` that describes the new layers, and ``before`` describes the old layers.
    ``origins`` are as in ``with_layers``. The fields that are set are added to ``made.added``. If no field can state
    the kinds, sentences on the layers whose kind changes are added to ``made.faults``.
    """
    parts = {id(config): _Part(config, before.path) for config, _ in origins}
    parts = {key: part if part.kind == before.kind else before for key, part in parts.items()}
    for one in layer_kinds(before.inner, before.kind):
        known = before.of(one)
        theirs = {key: part.of(one) for key, part in parts.items()}
        if not known:
            continue
        wanted = [_entry(theirs[id(config)], number, known) for config, number in origins]
        way = one.said(inner, wanted)
        if way is None:
            made.faults.extend(differing_kinds(one.name, list(enumerate(wanted)), one.of(inner, len(wanted))))
        else:
            made.added.extend(name for name in way if name not in made.added)
            inner.update(way)


def _entry(found: Sequence[Any], number: int, known: Sequence[Any]) -> Any:
    """Return ``found[number]`` if it exists, else ``known[number]``, else the last entry of ``known``."""
    found = found if number < len(found) else known
    return found[min(number, len(found) - 1)]


def kinds_stated(made: RenumberedConfig) -> list[str]:
    """Return a note on the fields that were set so that layers keep their kinds; [] if none was set."""
    if not made.added:
        return []
    return [f"config.json now sets {listing(made.added, where='')}, so that each layer keeps its kind"]


def differing_kinds(name: str, wanted: Sequence[tuple[int, Any]], found: Sequence[Any]) -> Iterator[str]:
    """Yield a sentence on each group of layers whose property ``name`` is not the wanted one.

    ``wanted`` has (index, wanted property) of layers, and ``found`` the actual property of every layer. Layers with the
    same wanted and the same actual property are a group.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for at, one in wanted:
        if at < len(found) and found[at] != one:
            groups.setdefault((escape(str(found[at]), 60), escape(str(one), 60)), []).append(str(at))
    for (here, there), numbers in groups.items():
        is_one = len(numbers) == 1
        layers = f"layer {numbers[0]}" if is_one else f"layers {listing(numbers, 12, where='')}"
        yield f"{layers} {'runs' if is_one else 'run'} as {here}, not {there} ({name})"


def part_of(config: Fields, prefix: str) -> _Part | None:
    """Return the part of a configuration that describes the layers with this key prefix; None if no part does."""
    paths = _chosen([path for path, _ in counted_layers(config)], prefix)
    return _Part(config, paths[0]) if paths else None


def not_by_layer(
    config: Fields, old: LayerList, others: Iterable[LayerList], kept: int, *, is_moved: bool = False
) -> Iterator[Reason]:
    """Yield the reasons why a configuration cannot be shortened to the first ``kept`` layers of the list ``old``.

    There are three possible reasons. First, the field with the number of these layers is also the number of layers of
    another list (one of ``others``). Second, an unknown field has an entry for each layer, or the index of a removed
    layer. Third, layers get another index (``is_moved``), ckpt does not know the class of the model, and this class may
    use a field to choose the kind of each layer by its index.
    """
    paths = [path for path, value in counted_layers(config) if value == old.count]
    fields = _chosen(paths, old.prefix)
    for other in others:
        theirs = _chosen(paths, other.prefix) if other.prefix != old.prefix and other.count == old.count else ()
        for path in fields:
            if path in theirs:
                yield Reason(f"{'.'.join(path)} is also the number of layers of {other.prefix}", is_certain=True)
    for above in dict.fromkeys([(), *(path[:-1] for path in fields)]):
        part = _Part(config, (*above, ""))
        is_about_them = any(path[:-1] == above for path in fields)
        known = [name for one in layer_kinds(part.inner, part.kind) for name in one.fields]
        cut = (*BY_LAYER, *known, *FIXED) if is_about_them else FIXED
        for name, value in part.inner.items():
            if name in cut or "token" in name:
                continue
            field_path = ".".join((*above, name))
            if _is_about_layers(name, value, old.count, kept):
                is_certain = is_about_them and len(value) == old.count and NAMES_LAYERS.search(name) is not None
                yield Reason(f"{field_path} still has values for all {old.count} layers", is_certain)
            elif is_moved and is_about_them and not _is_known(part) and _is_by_position(name, value):
                yield Reason(f"{field_path} may set the kind of each layer by its index, and indices have changed")


def _is_known(part: _Part) -> bool:
    """Return whether ckpt knows the properties that the class of this configuration derives from indices of layers."""
    return next(iter(layer_kinds({}, part.kind)), None) is not None


def _is_by_position(name: str, value: Any) -> bool:
    return BY_POSITION.search(name) is not None and value not in (None, "", [], 0, 1, False)


def _is_about_layers(name: str, value: Any, count: int, kept: int) -> bool:
    """Return whether a field may describe each layer of a list of ``count`` layers, of which the first ``kept`` stay.

    The result is true in three cases. First, the value is a list with ``count`` entries. Second, it is a list of lists,
    one of which contains the number ``count`` (``[["global"], 24]``). Third, the name is like ``layer_ids``, and the
    value is a list with the index of a removed layer.
    """
    if not isinstance(value, list):
        return False
    if len(value) == count or any(isinstance(one, list) and _counts_all(one, count) for one in value):
        return True
    numbers = [one for one in value if type(one) is int]
    return any(word in name for word in ("layer", "idx", "ind")) and any(one < 0 or one >= kept for one in numbers)


def _counts_all(value: list[Any], count: int) -> bool:
    return any(one == count and type(one) is int for one in value)


def _of_layer(config: Mapping[str, Any], path: Path, number: int, known: Sequence[Any]) -> Any:
    """Return entry ``number`` of the list at ``path``; ``known[number]`` if there is no such list or entry.

    If ``known`` is too short as well, its last entry is returned.
    """
    found: Any = config
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return _entry(found if isinstance(found, list) else [], number, known)


def _chosen(paths: Sequence[Path], prefix: str) -> Sequence[Path]:
    """Return those paths (of fields with a number of layers) that are about the layers with a key prefix.

    The prefix tells whether the layers are of a vision, audio or text model, and of an encoder or a decoder.
    """
    side = next((name for name, words in _SIDES.items() if any(word in prefix for word in words)), "")
    top = [path for path in paths if len(path) == 1]
    if side:
        paths = [path for path in paths if path[0] == f"{side}_config"] or top
    else:
        paths = [*top, *(path for path in paths if path[0] == "text_config")]
    own = [path for path in paths if "decoder" in path[-1]] if "decoder" in prefix else []
    own = own or [
        path for path in paths if "decoder" not in path[-1] and ("encoder" in prefix or "encoder" not in path[-1])
    ]
    return own or paths
