"""What an adapter holds: the factors of each module, their scale, and tensors that are saved as they are. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, shape_text
from .agreement import config_notes
from .config import AdapterConfig
from .kinds import not_known
from .names import DORA_SCALE, Part, loose_part, peft_part

__all__ = ["Adapter", "Module", "Scales", "read_adapter"]

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
