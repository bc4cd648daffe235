"""Finds the layers of the output, and changes lists in config.json that have an entry for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...planning.resizing.depth import INFLUENTIAL, Layer, layers_of
from ...planning.resizing.select import largest
from .asked_fields import AskedFields
from .choices import Choices

__all__ = ["chosen_layers", "influences_of", "lists_of_layers"]

_WITHOUT_EXPERTS = "mlp_only_layers"
"""The field that lists the layers without experts."""
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Fields with the number of layers without experts; these layers are the first ones."""


def chosen_layers(asked: AskedFields, choices: Choices, name: str) -> list[Layer]:
    """Return, for each layer of the output, the layer of the source from which it is made.

    ``name`` is the field with the number of layers in the list; a model may have several lists of layers. Raises
    ConfigError if layers are to be chosen by their influence, but there are no statistics, or the number of layers
    grows.
    """
    numbers = asked.numbers(name)
    if choices.layers != INFLUENTIAL:
        return layers_of(choices.layers, *numbers)
    if choices.influences is None or numbers[1] > numbers[0]:
        raise ConfigError(
            f"--layers {INFLUENTIAL} keeps the layers with the largest influence: give a smaller number of layers, "
            "and statistics.",
            hint="Make the statistics with ckpt stats, and give their file with --by.",
        )
    return [Layer(number) for number in largest(influences_of(asked, choices, name), numbers[1])]


def influences_of(asked: AskedFields, choices: Choices, name: str) -> list[float]:
    """Return the influence of each layer of the source if layers are chosen by it, else [].

    ``name`` is the field with the number of layers.
    """
    if choices.layers != INFLUENTIAL or choices.influences is None:
        return []
    return list(choices.influences(asked.numbers(name)[0], lambda: choices.lists(name)))


def lists_of_layers(asked: AskedFields, choices: Choices) -> dict[str, Any]:
    """Return {field: list with an entry for each layer} (``layer_types``), adapted to the layers of the output."""
    found: dict[str, Any] = {}
    for name in asked.of("depth"):
        (old, _), inside = asked.numbers(name), name.rpartition(".")[0]
        layers = chosen_layers(asked, choices, name)
        for one, value in asked.beside(name).items():
            path = f"{inside}.{one}" if inside else one
            if isinstance(value, list) and len(value) == old and path not in asked.new and _is_of_layers(one):
                found[path] = [value[layer.source] for layer in layers]
            if one == _WITHOUT_EXPERTS and value and path not in asked.new:
                found[path] = [number for number, layer in enumerate(layers) if layer.source in value]
            if one in _DENSE_FIRST and type(value) is int and path not in asked.new:
                dense = [layer.source < value for layer in layers]
                if sum(dense) != value and dense == sorted(dense, reverse=True):
                    found[path] = sum(dense)
        found |= _stages(asked, name, old, layers)
    return found


def _stages(asked: AskedFields, name: str, old: int, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the fields that list the layers whose features a backbone (BEiT, DINOv2) returns, for the output.

    In these fields, stage n is the output of the n-th layer, and stage 0 the input of the first layer. The stage of the
    last layer becomes that of the output's last layer. ``old`` is the number of layers of the source, and ``name`` the
    field with this number. Raises ConfigError if the output lacks the layer of any other stage.
    """
    part, inside = asked.beside(name), name.rpartition(".")[0]
    stages, indices = part.get("stage_names"), part.get("out_indices")
    paths = {one: f"{inside}.{one}" if inside else one for one in ("out_features", "out_indices")}
    if not (isinstance(stages, list) and len(stages) == old + 1 and isinstance(indices, list)):
        return {}
    if any(path in asked.new for path in paths.values()):
        return {}
    after = {0: 0, **{layer.source + 1: number + 1 for number, layer in enumerate(layers)}, old: len(layers)}
    wanted = [index % (old + 1) for index in indices]
    lost = [index for index in wanted if index not in after]
    if lost:
        raise ConfigError(
            f"the network returns the features after layer {lost[0] - 1} ({paths['out_indices']}), which is left out.",
            hint=f"Keep this layer with --layers, or set {paths['out_indices']} and {paths['out_features']}, too.",
        )
    made = [after[index] for index in wanted]
    if made == wanted:
        return {}
    names = ["stem", *(f"stage{number}" for number in range(1, len(layers) + 1))]
    return {paths["out_features"]: [names[index] for index in made], paths["out_indices"]: made}


def _is_of_layers(field: str) -> bool:
    return field.endswith(("layer_types", "layers_block_type", "_layers", "layers", "_pattern", "_types"))
