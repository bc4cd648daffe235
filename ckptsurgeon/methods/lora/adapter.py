"""Reads an adapter: the factors and scales of its modules, tensors saved in full, and notes on its configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, shape_text
from .composed import composed_parts
from .config import AdapterConfig, selects
from .names import DORA_SCALE, KeyParts, composed_key_parts, loose_key_parts, peft_key_parts, unknown_keys_error

__all__ = ["LINEAR", "STAYS", "Adapter", "AdapterModule", "Scales", "base_notes", "config_notes", "read_adapter"]

# Notes on differences between a PEFT configuration and the tensors.

STAYS = (" without factors: ", ": the base's are kept", " of the base do not change")
"""Parts of the texts of notes on modules of a base that a configuration selects, but the adapter has no tensors for."""

_WITHIN = re.compile(r"(?:base_model\.model\.)?(.+?)\.base_layer\.")
"""Matches a layer inside a module that PEFT wraps as a whole (torch's attention); group 1 is that module's name."""


_NUMBER = re.compile(r"\.\d+(?=\.)\.")
LINEAR = re.compile(
    r"\.(?:\w+_proj|(?:self|self_attn|attention)\.(?:query|key|value|query_key_value|dense)|fc[12]|c_(?:attn|fc)"
    r"|dense_h_to_4h|dense_4h_to_h|[qkv]_lin|out_lin|lin[12]|w[io](?:_[01])?)$"
)
"""Matches names of modules that are linear layers in models of transformers."""


def config_notes(modules: Iterable[AdapterModule], saved: Iterable[str], config: AdapterConfig) -> Iterator[str]:
    """Yield notes on differences between an adapter's configuration and its tensors, found without the base model.

    ``saved`` are the keys of tensors that the adapter saves in full, not as factors.
    """
    modules, kept = list(modules), list(saved)
    others: dict[str, list[str]] = {}
    for one in modules:
        if field := _excluding_field(one, config):
            others.setdefault(field, []).append(one.name)
    for field, names in others.items():
        number = f"{count(len(names), 'module')} {'has' if len(names) == 1 else 'have'}"
        yield f"{number} factors that lora merge uses, but PEFT ignores because of {field}: {_named(names)}"
    for name, table in (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas)):
        if unused := table.unused:
            yield f"{name} has entries that match no module: {_named(unused)}"
    if (
        config.saved
        and not any(config.saves(key) for key in kept)
        and not any(config.saves(one.name) for one in modules)
    ):
        yield f"modules_to_save lists {_named(config.saved)}, but the adapter has no tensors of them"
    idle = [one.name for one in modules if not one.scale]
    if idle:
        number = f"{count(len(idle), 'module')} {'has' if len(idle) == 1 else 'have'}"
        yield f"{number} a scale of 0 (lora_alpha, alpha_pattern), so their factors change nothing: {_named(idle)}"
    biased = [one.name for one in modules if one.bias]
    if modules and config.lora_bias and not biased:
        yield "lora_bias is set, but no module of the adapter has a bias"
    if biased and config.lora_bias is False:
        number = count(len(biased), "module")
        why = "which lora merge uses, but PEFT ignores"
        yield f"lora_bias is not set, but {number} with factors have a bias, {why}: {_named(biased)}"


def base_notes(
    adapter: Adapter, weights: Mapping[str, str], tensors: Mapping[str, TensorInfo], *, on: str, off: str
) -> Iterator[str]:
    """Yield notes on modules and biases that a configuration selects, although the adapter has no tensors for them.

    ``tensors`` are the headers of the base model. ``weights`` maps each module of the adapter to the key of its weight
    in the base model. If a name in the adapter begins with the prefix ``off``, the name in the base begins with ``on``
    instead.
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
    if config.linear is not None:
        lacking = [one for one in _linear(names, weights) if one not in changed and config.linear.has(one)]
    if lacking:
        yield f"target_modules selects {count(len(lacking), 'module')} without factors: {_named(lacking)}"
    for name in config.saved if any(map(config.saves, changed)) else ():  # else config_notes has a note on all of them
        there = [key for key in names if selects(name, key)]
        if there and not any(selects(name, key) for key in changed):
            yield f"modules_to_save lists {escape(name)}, but the adapter has no tensors of it: the base's are kept"
    if config.bias in ("all", "lora_only") and not any(key.rpartition(".")[2] == "bias" for key in saved):
        biases = [f"{one}.bias" for one in weights] if config.bias == "lora_only" else names
        lost = [key for key in biases if key.endswith("bias") and key in names]
        if lost:
            number = count(len(lost), "bias", "biases")
            yield f"bias is {config.bias}, but the adapter has no biases: {number} of the base do not change"


def _excluding_field(module: AdapterModule, config: AdapterConfig) -> str:
    """Return the field of ``config`` that makes PEFT ignore a module's factors; '' if PEFT uses them."""
    field = config.targets.against(module.name) if config.targets is not None else ""
    found = _WITHIN.match(module.a) if field else None
    return "" if found is not None and config.targets is not None and config.targets.has(found[1]) else field


def _linear(names: Mapping[str, TensorInfo], modules: Iterable[str]) -> Iterator[str]:
    """Yield the modules of a base that are surely linear layers, so that "all-linear" selects them.

    ``names`` are the headers of the base, ``modules`` the adapter's modules. A module of the base is yielded on two
    conditions. It must be in a list of layers that has one of ``modules``. And its name must be usual for a linear
    layer, or one of ``modules`` must have the same name in another layer of the list.
    """
    alike = {_NUMBER.sub(".*.", f".{one}") for one in modules}
    stacks = {one.partition("*")[0] for one in alike if "*" in one}
    for key, info in names.items():
        module = key.removesuffix(".weight")
        pattern = _NUMBER.sub(".*.", f".{module}")
        if key == module or len(info.shape) != 2 or ".experts" in pattern:
            continue
        if pattern.partition("*")[0] in stacks and (pattern in alike or LINEAR.search(pattern)):
            yield module


def _is_layer(key: str, info: TensorInfo) -> bool:
    return key.endswith(".weight") and len(info.shape) >= 2


def _named(names: Iterable[str]) -> str:
    return listing(list(names), 6, where="")


Scales = Callable[[str], float]
"""A function that returns the value of a tensor with one element, by the tensor's key."""

COMPOSED = ("hada_", "lokr_")
"""The beginnings of the roles of tensors of LoHa and LoKr."""

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Modules that PEFT saves in full if the vocabulary has grown, even if no setting asks for it."""


@dataclass(frozen=True)
class AdapterModule:
    """The adapter of one module: the keys of its factors A (rank, in) and B (out, rank), the scale of their product.

    ``bias`` and ``magnitude`` are the keys of the bias and of DoRA's magnitudes, '' if there are none. If ``joined``,
    the module's name has underscores instead of dots. ``component`` is the name of a model in a pipeline of diffusers,
    '' if there is only one model. For a LoHa or LoKr, ``kind`` is in ``SIDES``, and its tensors are ``a``, ``b`` and
    ``more``; otherwise ``kind`` is ''.
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
    kind: str = ""
    more: tuple[str, ...] = ()

    @property
    def factors(self) -> tuple[str, ...]:
        """The keys of all tensors whose product is the change."""
        return (self.a, self.b, *self.more)


@dataclass(frozen=True)
class Adapter:
    """An adapter, as its headers and its configuration describe it.

    ``saved`` is for tensors that the adapter saves in full, to replace tensors of the base: it maps keys of the base to
    keys of the adapter. ``transposed`` is PEFT's ``fan_in_fan_out``: whether a weight is (in, out), if its shape does
    not show this. ``spelling`` is the toolkit whose names the tensors have: PEFT, kohya, diffusers or mlx-lm.
    ``config`` is PEFT's configuration, if there is one. ``notes`` are on differences between the configuration and the
    tensors.
    """

    name: str
    modules: tuple[AdapterModule, ...]
    saved: Mapping[str, str]
    transposed: bool = False
    spelling: str = "PEFT"
    config: AdapterConfig | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _ModuleKeys:
    """The keys of an adapter's tensors for one module, by the role of the tensor: A, B, bias, magnitude or alpha.

    ``part`` is the ``KeyParts`` of one of the factors, A or B, or of a tensor of a LoHa or LoKr.
    """

    keys: dict[str, str] = field(default_factory=dict)
    part: KeyParts | None = None

    @property
    def is_composed(self) -> bool:
        """Whether the module is a LoHa or LoKr."""
        return any(role.startswith(COMPOSED) for role in self.keys)


def read_adapter(
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig] | None = None,
    *,
    composed: bool = False,
) -> Adapter:
    """Return the adapter that a file's tensors make up; raises FormatError for unknown keys, or a factor A without B.

    ``config`` is PEFT's configuration. Without it, the adapter is in the format of kohya or diffusers. These formats
    store the alpha of a module as a tensor with one element, whose value ``number`` returns by key. If a module has no
    such tensor, its scale is computed from ``metadata``, which maps the name of each model of a pipeline to a
    configuration. ``name`` is the adapter's name in messages. If ``composed``, modules may be LoHa or LoKr.
    """
    read = _key_reader(configured=config is not None, composed=composed)
    found: dict[tuple[str, str], _ModuleKeys] = {}
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
        one = found.setdefault((part.component, part.module), _ModuleKeys())
        if part.part in one.keys:
            _raise_duplicate(name, key, one.keys[part.part])
        one.keys[part.part] = key
        one.part = part if part.part.startswith(("A", "B", *COMPOSED)) else one.part
    if unknown or not (found or saved):
        raise unknown_keys_error(unknown, name, configured=config is not None)
    _check_halves(found.values(), name)
    modules = tuple(_module(one, tensors, config, name, number, metadata or {}) for one in found.values())
    spelling = "PEFT" if config is not None else _spelling(found.values())
    notes = tuple(config_notes(modules, saved, config)) if config is not None else ()
    return Adapter(name, modules, saved, config is not None and config.transposed, spelling, config, notes)


def _key_reader(*, configured: bool, composed: bool) -> Callable[[str], KeyParts | None]:
    if composed:
        return partial(composed_key_parts, configured=configured)
    return peft_key_parts if configured else loose_key_parts


def _is_saved(key: str, config: AdapterConfig | None) -> bool:
    """Return whether an adapter with this configuration saves the tensor ``key`` in full, not as factors."""
    if config is None:
        return False
    module, _, last = key.rpartition(".")
    whole = module.rpartition(".")[2] in EMBEDDINGS
    return config.saves(key) or whole or (config.bias in ("all", "lora_only") and last.endswith("bias"))


def _check_values(key: str, info: TensorInfo, name: str, *, number: bool) -> None:
    """Raise FormatError for a tensor that does not have real floating values.

    If ``number`` is true, integers are allowed too, but the tensor must have one element.
    """
    kind = DTYPES[info.dtype]
    if number and info.numel != 1:
        raise FormatError(
            f"the tensor {escape(key)} of {escape(name)} has the shape {info.shape}; it must be one number.",
            rule="alpha",
        )
    if info.opaque or kind.kind not in (("float", "int") if number else ("float",)) or kind.is_packed:
        wanted = (
            "an integer or floating-point dtype with one number in each element"
            if number
            else "a floating-point dtype with one number in each element"
        )
        why = info.opaque or f"its dtype is {info.dtype}, not {wanted}"
        raise FormatError(f"the tensor {escape(key)} of {escape(name)} cannot be merged: {why}.", rule="opaque")


def _raise_duplicate(name: str, key: str, other: str) -> None:
    raise FormatError(
        f"{escape(name)} has two adapters for one module: {escape(other)} and {escape(key)}.",
        hint="Save each adapter in a separate file.",
        rule="two adapters",
    )


def _check_axis(key: str, info: TensorInfo, name: str) -> None:
    """Raise ConfigError if DoRA magnitudes are for inputs, not for outputs (LyCORIS with ``wd_on_output`` false)."""
    if key.endswith(DORA_SCALE) and info.shape[:1] != (info.numel,):
        raise ConfigError(
            f"{escape(name)} has a DoRA magnitude for each input: {escape(key)} has the shape "
            f"{shape_text(info.shape)}. Only DoRA with a magnitude for each output, (out, 1), can be merged.",
            hint="Merge it with the toolkit that made it.",
        )


def _check_halves(found: Any, name: str) -> None:
    for one in found:
        if one.is_composed:
            continue
        lacking = [side for side in ("A", "B") if side not in one.keys]
        if lacking:
            have = next(iter(one.keys.values()))
            raise FormatError(
                f"{escape(name)} has {escape(have)}, but no factor {' and '.join(lacking)} for the same module.",
                rule="half an adapter",
            )


def _module(
    one: _ModuleKeys,
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig],
) -> AdapterModule:
    keys, part = one.keys, one.part
    assert part is not None  # ensured by _check_halves
    if one.is_composed:
        return _composed(keys, part, tensors, config, name, number)
    a, b = tensors[keys["A"]], tensors[keys["B"]]
    rank = a.shape[0] if a.shape else 0
    if not rank:
        raise FormatError(f"the factor {escape(keys['A'])} of {escape(name)} has a rank of zero.", rule="rank")
    if len(b.shape) < 2 or b.shape[1] != rank:
        raise FormatError(
            f"the factor {escape(keys['A'])} of {escape(name)} has the shape {a.shape}, {escape(keys['B'])} has "
            f"{b.shape}: their ranks differ.",
            rule="rank",
        )
    configured = config if config is not None else metadata.get(part.component)
    module = part.module if config is not None else part.module.removeprefix(f"{part.component}.")
    if configured is not None and "alpha" not in keys:
        if configured.rank_of(module) != rank:
            raise _other_rank(configured.rank_of(module), part.module, rank, name)
        scale = configured.scale_of(module)
    else:
        scale = number(keys["alpha"]) / rank if "alpha" in keys else 1.0
    if config is not None and config.dora != ("magnitude" in keys):
        has = "has" if "magnitude" in keys else "lacks"
        raise ConfigError(
            f"the configuration of {escape(name)} has use_dora {str(config.dora).lower()}, but {escape(part.module)} "
            f"{has} magnitudes.",
            hint="Put the adapter_config.json that was saved with these weights into their folder.",
        )
    return AdapterModule(
        part.module, keys["A"], keys["B"], part.times * scale, part.embedding, keys.get("bias", ""),
        keys.get("magnitude", ""), part.joined, part.component,
    )  # fmt: skip


def _composed(
    keys: Mapping[str, str],
    part: KeyParts,
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
) -> AdapterModule:
    """Return the module of a LoHa or LoKr; without a factorised matrix, only PEFT has a scale (LyCORIS' is 1)."""
    kind, own, rank = composed_parts(keys, tensors, name)
    if config is not None and rank and config.rank_of(part.module) != rank:
        raise _other_rank(config.rank_of(part.module), part.module, rank, name)
    scale = number(keys["alpha"]) / rank if "alpha" in keys and rank else 1.0
    return AdapterModule(
        part.module, own[0], own[1], config.scale_of(part.module) if config is not None else scale,
        magnitude=keys.get("magnitude", ""), joined=part.joined, component=part.component, kind=kind,
        more=tuple(own[2:]),
    )  # fmt: skip


def _other_rank(configured: int, module: str, rank: int, name: str) -> ConfigError:
    return ConfigError(
        f"the configuration of {escape(name)} has the rank {configured} for {escape(module)}, but its factors have "
        f"the rank {rank}.",
        hint="Put the adapter_config.json that was saved with these weights into their folder.",
    )


def _spelling(found: Any) -> str:
    return "kohya" if any(one.part is not None and one.part.joined for one in found) else "diffusers"
