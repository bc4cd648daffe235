"""Reads an adapter from the headers of its file: its modules with factors and scales, and tensors saved in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, shape_text
from .adapter import Adapter, AdapterModule, config_notes
from .composed import COMPOSED, composed_parts
from .config import AdapterConfig
from .kinds import MERGED
from .names import (
    DORA_SCALE,
    LEAVE_OUT,
    MID,
    KeyParts,
    composed_key_parts,
    loose_key_parts,
    peft_key_parts,
    unknown_keys_error,
    unknown_module,
)
from .rotated import ROTATED, rotation_kind
from .tucker import LOCON

__all__ = ["Excluded", "Scales", "read_adapter"]

Scales = Callable[[str], float]
"""A function that returns the value of a tensor with one element, by the tensor's key."""

Excluded = Callable[[str], bool]
"""A function that returns whether the user excludes a module, by its name in the file, such as lora_unet_first."""

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Modules that PEFT saves in full if the vocabulary has grown, even if no setting asks for it."""


@dataclass
class _ModuleKeys:
    """The keys of an adapter's tensors for one module, by the role of the tensor: A, B, bias, magnitude or alpha.

    ``part`` is the ``KeyParts`` of one of the factors, A or B, or of a tensor of a LoHa, LoKr or OFT.
    """

    keys: dict[str, str] = field(default_factory=dict)
    part: KeyParts | None = None

    @property
    def is_composed(self) -> bool:
        """Whether the module is a LoHa, LoKr or OFT."""
        return any(role.startswith(MERGED) for role in self.keys)


def read_adapter(
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig] | None = None,
    *,
    methods: tuple[str, ...] = (),
    excluded: Excluded | None = None,
) -> Adapter:
    """Return the adapter that a file's tensors make up; raises FormatError for unknown keys, or a factor A without B.

    ``config`` is PEFT's configuration. Without it, the adapter is in the format of kohya or diffusers. These formats
    store the alpha of a module as a tensor with one element, whose value ``number`` returns by key. If a module has no
    such tensor, its scale is computed from ``metadata``, which maps the name of each model of a pipeline to a
    configuration. ``name`` is the adapter's name in messages. ``methods`` are the beginnings of the roles of other
    tensors that are allowed: none, ``COMPOSED`` or ``MERGED``. Modules that are ``excluded`` are not checked, and may
    be of any kind.
    """
    read = _key_reader(methods, configured=config is not None)
    left = _left_keys(tensors, read, config, excluded) if excluded is not None else {}
    out = {key for keys in left.values() for key in keys}
    found: dict[tuple[str, str], _ModuleKeys] = {}
    saved: dict[str, str] = {}
    unknown = []
    for key, info in tensors.items():
        if key in out:
            continue
        part = read(key)
        if part is None or (part.part == "saved" and not _is_saved(part.module, config)):
            unknown.append(key)
            continue
        _check_values(key, info, name, number=part.part == "alpha")
        _check_axis(key, info, name, converted=methods == COMPOSED)
        if part.part == "saved":
            saved[part.module] = key
            continue
        one = found.setdefault((part.component, part.module), _ModuleKeys())
        if part.part in one.keys:
            _raise_duplicate(name, key, one.keys[part.part])
        one.keys[part.part] = key
        one.part = part if part.part.startswith(("A", "B", *MERGED)) else one.part
    if unknown or not (found or saved or left):
        raise unknown_keys_error(unknown, name, configured=config is not None, methods=methods)
    _check_halves(found.values(), name)
    within, kernels = metadata or {}, methods == MERGED
    modules = tuple(_module(one, tensors, config, name, number, within, kernels=kernels) for one in found.values())
    spelling = "PEFT" if config is not None else _spelling(found.values())
    notes = tuple(
        config_notes(modules, saved, config) if config is not None else _assumed_notes(found.values(), within)
    )
    return Adapter(name, modules, saved, config is not None and config.transposed, spelling, config, notes, left)


def _key_reader(methods: tuple[str, ...], *, configured: bool) -> Callable[[str], KeyParts | None]:
    if methods:
        return partial(composed_key_parts, methods=methods, configured=configured)
    return peft_key_parts if configured else loose_key_parts


def _left_keys(
    tensors: Iterable[str],
    read: Callable[[str], KeyParts | None],
    config: AdapterConfig | None,
    excluded: Excluded,
) -> Mapping[str, tuple[str, ...]]:
    """Return the names of the modules that are excluded, and the keys of their tensors.

    Tensors that the adapter saves in full are not parts of modules.
    """
    left: dict[str, tuple[str, ...]] = {}
    for key in tensors:
        part = read(key)
        if part is not None and part.part == "saved":
            if _is_saved(part.module, config):
                continue
            part = None
        module = part.name if part is not None else unknown_module(key)
        if excluded(module):
            left[module] = (*left.get(module, ()), key)
    return left


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


def _check_axis(key: str, info: TensorInfo, name: str, *, converted: bool) -> None:
    """Raise ConfigError if DoRA magnitudes are for inputs, not for outputs (LyCORIS with ``wd_on_output`` false)."""
    if key.endswith(DORA_SCALE) and info.shape[:1] != (info.numel,):
        raise ConfigError(
            f"{escape(name)} has a DoRA magnitude for each input: {escape(key)} has the shape "
            f"{shape_text(info.shape)}. Only DoRA with a magnitude for each output, (out, 1), can be merged.",
            hint=f"Merge it with the toolkit that made it{LEAVE_OUT if converted else ''}.",
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
    *,
    kernels: bool,
) -> AdapterModule:
    keys, part = one.keys, one.part
    assert part is not None  # ensured by _check_halves
    if ROTATED in keys:
        return _rotated(keys, part, config, name)
    if one.is_composed:
        return _composed(keys, part, tensors, config, name, number, metadata, kernels=kernels)
    if MID in keys:
        return _with_core(keys, part, tensors, config, name, number, metadata)
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
    scale = _scale(keys, part, rank, config, name, number, metadata)
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
    metadata: Mapping[str, AdapterConfig],
    *,
    kernels: bool,
) -> AdapterModule:
    """Return a module of a LoHa or LoKr; if ``kernels``, it may be a convolution."""
    kind, own, rank = composed_parts(keys, tensors, name, kernels=kernels)
    return AdapterModule(
        part.module, own[0], own[1], _scale(keys, part, rank, config, name, number, metadata),
        magnitude=keys.get("magnitude", ""), joined=part.joined, component=part.component, kind=kind,
        more=tuple(own[2:]),
    )  # fmt: skip


def _with_core(
    keys: Mapping[str, str],
    part: KeyParts,
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig],
) -> AdapterModule:
    """Return a module of a LoCon with a Tucker decomposition: a core between B and A."""
    own = [keys[MID], keys["B"], keys["A"]]
    core, up, down = (tensors[key].shape for key in own)
    if len(core) < 3 or not all(core) or core[:1] != up[1:2] or core[1:2] != down[:1]:
        given = ", ".join(f"{escape(key)} {shape_text(tensors[key].shape)}" for key in own)
        raise FormatError(f"the factors of a module of {escape(name)} do not fit each other: {given}.", rule="rank")
    scale = _scale(keys, part, core[0], config, name, number, metadata)
    return AdapterModule(
        part.module, own[0], own[1], part.times * scale, magnitude=keys.get("magnitude", ""), joined=part.joined,
        component=part.component, kind=LOCON, more=(own[2],),
    )  # fmt: skip


def _rotated(keys: Mapping[str, str], part: KeyParts, config: AdapterConfig | None, name: str) -> AdapterModule:
    """Return a module of an OFT, whose scale is always 1."""
    other = next((key for role, key in keys.items() if role != ROTATED), "")
    if other:
        raise FormatError(
            f"{escape(name)} has {escape(other)} and {escape(keys[ROTATED])} for the same module.", rule="two adapters"
        )
    settings = config.data if config is not None else {}
    terms = settings.get("num_cayley_neumann_terms") if settings.get("use_cayley_neumann") else 0
    if type(terms) is not int:
        raise ConfigError(
            f"{escape(name)} has {escape(keys[ROTATED])}, but its adapter_config.json is not that of an OFT.",
            hint="Put the adapter_config.json that was saved with these weights into their folder.",
        )
    return AdapterModule(part.module, keys[ROTATED], "", 1.0, part.embedding, kind=rotation_kind(terms))


def _scale(
    keys: Mapping[str, str],
    part: KeyParts,
    rank: int,
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig],
) -> float:
    """Return the scale of a module; ``rank`` is 0 if no matrix is factorised: then LyCORIS' scale is 1."""
    configured = config if config is not None else metadata.get(part.component)
    module = part.module if config is not None else part.module.removeprefix(f"{part.component}.")
    if configured is None or "alpha" in keys:
        return number(keys["alpha"]) / rank if "alpha" in keys and rank else 1.0
    if rank and configured.rank_of(module) != rank:
        raise _other_rank(configured.rank_of(module), part.module, rank, name)
    return configured.scale_of(module)


def _assumed_notes(found: Iterable[_ModuleKeys], metadata: Mapping[str, AdapterConfig]) -> Iterator[str]:
    """Yield a note on modules of LoHa, LoKr, or LoCon with a core, that have a rank, but no alpha."""
    assumed = [
        one
        for one in found
        if (MID in one.keys or (one.is_composed and any(role.endswith("_a") for role in one.keys)))
        and "alpha" not in one.keys
        and (one.part is None or one.part.component not in metadata)
    ]
    if assumed:
        yield f"no alpha: scale 1 is assumed for {count(len(assumed), 'module')}"


def _other_rank(configured: int, module: str, rank: int, name: str) -> ConfigError:
    return ConfigError(
        f"the configuration of {escape(name)} has the rank {configured} for {escape(module)}, but its factors have "
        f"the rank {rank}.",
        hint="Put the adapter_config.json that was saved with these weights into their folder.",
    )


def _spelling(found: Any) -> str:
    return "kohya" if any(one.part is not None and one.part.joined for one in found) else "diffusers"
