"""What a configuration of PEFT's says of an adapter and its tensors are not: each in a line. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing
from .config import PREFIX, AdapterConfig

if TYPE_CHECKING:
    from .adapter import Adapter, Module

__all__ = ["base_notes", "config_notes"]

_WITHIN = re.compile(r"(?:base_model\.model\.)?(.+?)\.base_layer\.")
"""A layer within one that PEFT wraps whole (torch's attention): the outer is what is meant."""


def config_notes(modules: Iterable[Module], saved: Iterable[str], config: AdapterConfig) -> Iterator[str]:
    """Yield in what a configuration and tensors differ, as far as both tell without their base."""
    modules, kept = list(modules), list(saved)
    others: dict[str, list[str]] = {}
    for one in modules:
        if field := _against(one, config):
            others.setdefault(field, []).append(one.name)
    for field, names in others.items():
        number = f"{count(len(names), 'module')} {'has' if len(names) == 1 else 'have'}"
        yield f"{number} factors that PEFT leaves out, by {field}, and lora merge takes: {_named(names)}"
    for name, table in (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas)):
        if unused := table.unused:
            yield f"{name} has what decides for no module: {_named(unused)}"
    if (
        config.saved
        and not any(config.saves(key) for key in kept)
        and not any(config.saves(one.name) for one in modules)
    ):
        yield f"modules_to_save names {_named(config.saved)}, and no tensor is of them"
    biased = [one.name for one in modules if one.bias]
    if modules and config.lora_bias and not biased:
        yield "lora_bias is set, and no module has a bias of its own"
    if biased and config.lora_bias is False:
        number = count(len(biased), "module")
        why = "which PEFT leaves out and lora merge takes"
        yield f"lora_bias is not set, and {number} with factors have a bias, {why}: {_named(biased)}"


def base_notes(
    adapter: Adapter, weights: Mapping[str, str], tensors: Mapping[str, TensorInfo], *, on: str, off: str
) -> Iterator[str]:
    """Yield what a configuration means of a base and the adapter has no tensors for: there the base stays as it is.

    ``weights`` maps modules to their keys in the base, whose names have ``on`` before them and not ``off``.
    """
    config = adapter.config
    if config is None:
        return
    saved = set(adapter.saved)
    names = {off + key[len(on) :]: info for key, info in tensors.items() if key.startswith(on)}
    changed = {*weights, *saved, *(key.rpartition(".")[0] for key in saved)}
    layers = [key.removesuffix(".weight") for key, info in names.items() if _is_layer(key, info)]
    targets = config.targets
    lacking = [one for one in layers if one not in changed and targets is not None and targets.has(one)]
    if lacking:
        yield f"target_modules means {count(len(lacking), 'module')} for which there are no factors: {_named(lacking)}"
    for name in config.saved if any(map(config.saves, changed)) else ():  # else it has been said of all
        own = f".{name.removeprefix(PREFIX)}."
        there = [key for key in names if own in f".{key}."]
        if there and not any(own in f".{key}." for key in changed):
            yield f"modules_to_save names {escape(name)}, and the base's stays: there are no tensors of it"
    if config.bias in ("all", "lora_only") and not any(key.rpartition(".")[2] == "bias" for key in saved):
        biases = [f"{one}.bias" for one in weights] if config.bias == "lora_only" else names
        lost = [key for key in biases if key.endswith("bias") and key in names]
        if lost:
            number = count(len(lost), "bias", "biases")
            yield f"bias is {config.bias}, and there are no biases: {number} of the base stay as they are"


def _against(module: Module, config: AdapterConfig) -> str:
    """Return the field by which PEFT leaves a module's factors out, '' where it takes them."""
    field = config.targets.against(module.name) if config.targets is not None else ""
    found = _WITHIN.match(module.a) if field else None
    return "" if found is not None and config.targets is not None and config.targets.has(found[1]) else field


def _is_layer(key: str, info: TensorInfo) -> bool:
    return key.endswith(".weight") and len(info.shape) >= 2


def _named(names: Iterable[str]) -> str:
    return listing(list(names), 6, where="")
