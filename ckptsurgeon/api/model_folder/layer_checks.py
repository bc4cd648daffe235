"""Layers of a model that its configuration declares and the weights lack, as a whole or in part: a note on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import LayerList, layers_of, lists_with_gaps, numbered_lists
from ...util.text import count, escape, shape_text, together
from .config import declared_layers
from .shape_checks import Described, is_number

__all__ = ["STACKS", "layer_notes"]

STACKS = ("block", "blocks", "h", "layer", "layers")
"""What modules that are the layers of a model are called."""
OWN_LAYERS = ("block_configs", "per_layer_config")
"""Fields of models whose layers may lack any of their parts."""
ALIKE = frozenset((
    "bart", "bert", "bloom", "camembert", "cohere", "distilbert", "electra", "falcon", "gemma", "gemma2", "gemma3_text",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "marian", "mbart", "mistral", "olmo", "olmo2", "opt",
    "phi", "phi3", "qwen2", "qwen3", "roberta", "starcoder2", "vit", "whisper", "xlm-roberta",
))  # fmt: skip
"""Model types whose layers all have the same tensors."""
FEWEST = 4
"""Layers of which the others tell what an inner one should have: of 3, one that each second has is lacking in one."""
COUNTED_OTHERWISE = ("efficientnet", "hrm_text")
"""Model types whose number of layers is not that of the modules in a list."""
VALUES = (".weight", ".bias")
"""Tensors that a module has however it is encoded; scales and the like are only of those with codes."""


def layer_notes(tensors: Sequence[Described], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is not so of the layers that a configuration declares: number, gaps, tensors that lack or differ."""
    keys = [one.key for one in tensors]
    yield from _uneven(tensors, config)
    lists = numbered_lists(keys)
    yield from _gaps(lists, keys, config)
    yield from _holes(lists, keys, config)
    stacks = [one for one in lists if one.prefix.rpartition(".")[2] in STACKS]
    for name, value in declared_layers(config).items() if stacks else ():
        side = next((one for one in ("decoder", "encoder") if one in name), "")
        if (side and not any(f"{side}." in key for key in keys)) or config.get("model_type") in COUNTED_OTHERWISE:
            continue
        counts = (value, value + _more_layers(config))
        if not any(one.count in counts for one in lists):
            most = max(stacks, key=lambda one: one.count)
            has = f"{escape(most.prefix)} has {count(most.count, 'layer')}"
            rest = "loads no others" if most.count > value else "initialises the others"
            yield f"config.json says {value} ({name}), and {has}: transformers {rest}"
            return


def _gaps(lists: Sequence[LayerList], keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Say that layers which a configuration declares are not numbered from 0 on.

    Where a list has them all, another one with gaps has modules without weights between.
    """
    declared = set(declared_layers(config).values())
    if not declared - {one.count for one in lists}:
        return
    for prefix, numbers in lists_with_gaps(keys).items():
        if _is_stack(prefix):
            first = next(number for number in range(max(numbers)) if number not in numbers)
            lost = count(max(numbers) + 1 - len(numbers), "layer")
            has = f"{escape(prefix)} goes to {max(numbers)} and lacks {lost}, {first} first"
            yield f"{has}: transformers initialises these"
            return


def _holes(lists: Sequence[LayerList], keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Say that a layer lacks tensors that others like it have.

    Layers of many architectures differ on purpose: the first and the last, every second, those of attention among
    others. One alone that has nothing of its own is none of these.
    """
    if not config or any(name in config for name in OWN_LAYERS):
        return
    are_alike = config.get("model_type") in ALIKE
    for one in lists:
        if _is_stack(one.prefix) and one.count > 1:
            layers = {number: dict.fromkeys(rests) for number, rests in layers_of(one, keys).items()}
            found = _lacking(layers) if are_alike else _lone(layers)
            if found:
                number = min(found)
                more = f"; {count(len(found) - 1, 'other layer')} too" if len(found) > 1 else ""
                lacks = f"{escape(one.key(number, ''))} lacks {together(found[number], 3)}"
                yield f"{lacks}, unlike the other layers: transformers initialises what is lacking{more}"


def _uneven(tensors: Sequence[Described], config: Mapping[str, Any]) -> Iterator[str]:
    """Say that a tensor has another shape in one layer than in another, where the layers of a model are all alike."""
    if config.get("model_type") not in ALIKE:
        return
    shapes = {one.key: one.shape for one in tensors if one.key.endswith(VALUES) and is_number(one)}
    for one in numbered_lists(list(shapes)):
        first: dict[str, str] = {}
        for number, rests in layers_of(one, shapes).items() if _is_stack(one.prefix) else ():
            for rest in rests:
                key = one.key(number, rest)
                other = first.setdefault(rest, key)
                if shapes[key] != shapes[other]:
                    yield (
                        f"{escape(other)} is {shape_text(shapes[other])}, and {escape(key)} {shape_text(shapes[key])}: "
                        f"layers of {escape(str(config['model_type']))} are alike, so one of the two is another model's"
                    )
                    return


def _is_stack(prefix: str) -> bool:
    return prefix.rpartition(".")[2] in STACKS and not any(map(str.isdigit, prefix.split(".")))


def _lacking(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return what layers lack that half of them have or more."""
    counts = Counter(rest for rests in layers.values() for rest in rests)
    usual = [rest for rest, number in counts.items() if number * 2 >= len(layers)]
    found = {number: _lost(rests, usual, counts) for number, rests in layers.items()}
    return {number: lost for number, lost in found.items() if lost}


def _lone(layers: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return what one layer alone lacks that all others have, if it is neither the first nor the last."""
    if len(layers) < FEWEST:
        return {}
    counts = Counter(rest for rests in layers.values() for rest in rests)
    usual = [rest for rest, number in counts.items() if number == len(layers) - 1]
    found = {number: [rest for rest in usual if rest not in rests] for number, rests in layers.items()}
    odd = [number for number, lost in found.items() if lost]
    if len(odd) != 1 or odd[0] in (min(layers), max(layers)):
        return {}
    lost = _lost(layers[odd[0]], found[odd[0]], counts)
    return {odd[0]: lost} if lost else {}


def _lost(own: Collection[str], usual: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Return the usual tensors that a layer lacks; none if it has some of its own, being another kind or code."""
    if any(counts[rest] == 1 for rest in own):
        return []
    modules = {rest[:place] for rest in own for place, letter in enumerate(rest) if letter == "."}
    return [
        rest
        for rest in usual
        if rest not in own
        and (f".{rest}".endswith(VALUES) or rest.rpartition(".")[0] not in modules)
        and not any(rest.startswith(f"{other}.") for other in own)
    ]


def _more_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers follow those that are declared: for tokens after the next (DeepSeek-V3, GLM-4.5)."""
    more = config.get("num_nextn_predict_layers")
    return more if type(more) is int else 0
