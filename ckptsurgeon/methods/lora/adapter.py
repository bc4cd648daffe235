"""An adapter: the factors and scales of its modules, tensors saved in full, and notes on its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count, escape, listing
from .config import AdapterConfig, selects
from .expert_stack import is_stack

__all__ = ["LINEAR", "Adapter", "AdapterModule", "base_notes", "config_notes"]

# Notes on differences between a PEFT configuration and the tensors.

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
        if not is_stack(one.kind) and (field := _excluding_field(one, config)):  # target_parameters selects stacks
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


@notes_of(NoteKind.MODULES_WITHOUT_FACTORS)
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
    """Yield the names of modules of a base that are certainly linear layers, so that "all-linear" selects them.

    ``names`` are the headers of the base, ``modules`` the names of the adapter's modules. Only modules in a list of
    layers in which the adapter changes a module are yielded. Their name must be a usual name of a linear layer, or the
    adapter must have a module of this name in some layer: ``layers.1.mix`` is yielded if the adapter has
    ``layers.0.mix``.
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


@dataclass(frozen=True)
class AdapterModule:
    """The adapter of one module: the keys of its factors A (rank, in) and B (out, rank), the scale of their product.

    ``bias`` and ``magnitude`` are the keys of the bias and of DoRA's magnitudes, '' if there are none. If ``joined``,
    the module's name has underscores instead of dots. ``component`` is the name of a model in a pipeline of diffusers,
    '' if there is only one model. ``kind`` is '' for a LoRA. For a LoHa or LoKr, it is in ``SIDES`` or ``TUCKER``, and
    the tensors are ``a``, ``b`` and ``more``. For an OFT, it is a ``rotation_kind``, and the only tensor is ``a``. For
    stacked experts, it is a ``stack_kind``, and ``a`` and ``b`` hold the factors of all experts.
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
        """The keys of all tensors from which the change is computed: ``a``, ``b`` (if any) and ``more``."""
        return tuple(key for key in (self.a, self.b, *self.more) if key)


@dataclass(frozen=True)
class Adapter:
    """An adapter, as its headers and its configuration describe it.

    ``saved`` maps keys of the base to keys of the adapter, for tensors that the adapter saves in full, to replace
    tensors of the base. ``transposed`` is PEFT's ``fan_in_fan_out``: whether a weight is (in, out), if its shape does
    not show this. ``spelling`` is the toolkit whose names the tensors have: PEFT, kohya, diffusers or mlx-lm.
    ``config`` is PEFT's configuration, if there is one. ``notes`` list differences between the configuration and the
    tensors. ``left`` maps each module that the user excluded to the keys of its tensors, which were not checked.
    """

    name: str
    modules: tuple[AdapterModule, ...]
    saved: Mapping[str, str]
    transposed: bool = False
    spelling: str = "PEFT"
    config: AdapterConfig | None = None
    notes: tuple[str, ...] = ()
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
