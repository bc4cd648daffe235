"""What an adapter holds: factors of modules, their scale, other tensors; where its configuration is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, shape_text
from .config import PREFIX, AdapterConfig
from .names import DORA_SCALE, Part, loose_part, not_known, peft_part

__all__ = ["Adapter", "Module", "Scales", "base_notes", "config_notes", "read_adapter"]

# What a configuration of PEFT's says of an adapter and its tensors are not: each in a line. Pure.

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


Scales = Callable[[str], float]
"""Reads the one number that a tensor holds, by its key."""

EMBEDDINGS = ("embed_tokens", "lm_head")
"""What PEFT saves whole, without being asked, where a vocabulary grew."""


@dataclass(frozen=True)
class Module:
    """The adapter of one module: the keys of its factors A (rank, in) and B (out, rank), and what B A counts.

    ``bias`` and ``magnitude`` are the keys of what goes with them, '' for none. ``joined`` and ``component`` are as in
    ``names.Part``.
    """

    name: str
    a: str
    b: str
    scale: float
    embedding: bool = False
    bias: str = ""
    magnitude: str = ""
    joined: bool = False
    component: str = ""


@dataclass(frozen=True)
class Adapter:
    """An adapter as its headers and its configuration describe it.

    ``saved`` maps keys of the base to the keys of tensors that take their place. ``transposed`` says how square
    weights lie. ``spelling`` is whose names it has. ``config`` is PEFT's, where it has one; ``notes`` say in what that
    and the tensors differ.
    """

    name: str
    modules: tuple[Module, ...]
    saved: Mapping[str, str]
    transposed: bool = False
    spelling: str = "PEFT"
    config: AdapterConfig | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Found:
    """The keys of one module, by what they are."""

    keys: dict[str, str] = field(default_factory=dict)
    part: Part | None = None


def read_adapter(
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig] | None = None,
) -> Adapter:
    """Return what the tensors of a file are; raises FormatError for a key that is not known or lacks its other half.

    Without ``config`` it is one of kohya's or diffusers', whose scales lie in the file, where ``number`` reads them, or
    in its ``metadata``, by component.
    """
    read = peft_part if config is not None else loose_part
    found: dict[tuple[str, str], _Found] = {}
    saved: dict[str, str] = {}
    unknown = []
    for key, info in tensors.items():
        part = read(key)
        if part is None or (part.part == "saved" and not _is_saved(part.module, config)):
            unknown.append(key)
            continue
        _check_values(key, info, name, number=part.part == "alpha")
        _check_axis(key, info, name)
        if part.part == "saved":
            saved[part.module] = key
            continue
        one = found.setdefault((part.component, part.module), _Found())
        if part.part in one.keys:
            _twice(name, key, one.keys[part.part])
        one.keys[part.part] = key
        one.part = part if part.part in ("A", "B") else one.part
    if unknown or not (found or saved):
        raise not_known(unknown, name, configured=config is not None)
    _check_halves(found.values(), name)
    modules = tuple(_module(one, tensors, config, name, number, metadata or {}) for one in found.values())
    spelling = "PEFT" if config is not None else _spelling(found.values())
    notes = tuple(config_notes(modules, saved, config)) if config is not None else ()
    return Adapter(name, modules, saved, config is not None and config.transposed, spelling, config, notes)


def _is_saved(key: str, config: AdapterConfig | None) -> bool:
    """Whether a configuration explains why a tensor is in an adapter as it is."""
    if config is None:
        return False
    module, _, last = key.rpartition(".")
    whole = module.rpartition(".")[2] in EMBEDDINGS
    return config.saves(key) or whole or (config.bias in ("all", "lora_only") and last.endswith("bias"))


def _check_values(key: str, info: TensorInfo, name: str, *, number: bool) -> None:
    """Raise FormatError for what is no real floating tensor, or for a scale that is not one number."""
    kind = DTYPES[info.dtype]
    if number and info.numel != 1:
        raise FormatError(f"{escape(key)} of {escape(name)} is {info.shape}, not one number.", rule="alpha")
    if info.opaque or kind.kind not in (("float", "int") if number else ("float",)) or kind.is_packed:
        why = info.opaque or f"it is {info.dtype}"
        raise FormatError(f"{escape(key)} of {escape(name)} cannot be merged: {why}.", rule="opaque")


def _twice(name: str, key: str, other: str) -> None:
    raise FormatError(
        f"{escape(name)} holds {escape(other)} and {escape(key)}, which are of one module.",
        hint="Save one adapter alone.",
        rule="two adapters",
    )


def _check_axis(key: str, info: TensorInfo, name: str) -> None:
    """Raise ConfigError for a DoRA of LyCORIS' whose magnitudes are those of the inputs: ``wd_on_output`` was false."""
    if key.endswith(DORA_SCALE) and info.shape[:1] != (info.numel,):
        raise ConfigError(
            f"{escape(name)} is a DoRA over the inputs, as {escape(key)} {shape_text(info.shape)} shows, which is not "
            "supported: what is merged is DoRA over the outputs, (out, 1).",
            hint="Merge it with the toolkit that made it.",
        )


def _check_halves(found: Any, name: str) -> None:
    for one in found:
        lacking = [side for side in ("A", "B") if side not in one.keys]
        if lacking:
            have = next(iter(one.keys.values()))
            raise FormatError(
                f"{escape(name)} has {escape(have)} and no factor {' and '.join(lacking)} of that module.",
                rule="half an adapter",
            )


def _module(
    one: _Found,
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig],
) -> Module:
    keys, part = one.keys, one.part
    assert part is not None  # by _check_halves
    a, b = tensors[keys["A"]], tensors[keys["B"]]
    rank = a.shape[0] if a.shape else 0
    if not rank:
        raise FormatError(f"{escape(keys['A'])} of {escape(name)} has a rank of zero.", rule="rank")
    if len(b.shape) < 2 or b.shape[1] != rank:
        raise FormatError(
            f"{escape(keys['A'])} of {escape(name)} is {a.shape}, {escape(keys['B'])} {b.shape}: their ranks differ.",
            rule="rank",
        )
    said = config if config is not None else metadata.get(part.component)
    module = part.module if config is not None else part.module.removeprefix(f"{part.component}.")
    if said is not None and "alpha" not in keys:
        if said.rank_of(module) != rank:
            raise ConfigError(
                f"{escape(name)} says that {escape(part.module)} has rank {said.rank_of(module)}; it has {rank}.",
                hint="Its configuration is of another adapter.",
            )
        scale = said.scale_of(module)
    else:
        scale = number(keys["alpha"]) / rank if "alpha" in keys else 1.0
    if config is not None and config.dora != ("magnitude" in keys):
        has = "has" if "magnitude" in keys else "lacks"
        raise ConfigError(
            f"{escape(name)} has use_dora {str(config.dora).lower()}, and {escape(part.module)} {has} magnitudes.",
            hint="Its configuration is of another adapter.",
        )
    return Module(
        part.module, keys["A"], keys["B"], part.times * scale, part.embedding, keys.get("bias", ""),
        keys.get("magnitude", ""), part.joined, part.component,
    )  # fmt: skip


def _spelling(found: Any) -> str:
    return "kohya" if any(one.part is not None and one.part.joined for one in found) else "diffusers"
