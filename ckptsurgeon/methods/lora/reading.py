"""Reads an adapter from the headers of its file: its modules with factors and scales, and tensors saved in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, shape_text
from .adapter import Adapter, AdapterModule, config_notes
from .composed import COMPOSED
from .config import AdapterConfig
from .kinds import MERGED
from .module_reading import AdapterFile, ModuleKeys, Scales, assumed_notes, check_halves, module_of
from .names import (
    DORA_SCALE,
    LEAVE_OUT,
    KeyParts,
    composed_key_parts,
    loose_key_parts,
    peft_key_parts,
    unknown_keys_error,
    unknown_module,
)

__all__ = ["Excluded", "Scales", "read_adapter"]

Excluded = Callable[[str], bool]
"""A function that returns whether the user excludes a module, by its name in the file, such as lora_unet_first."""

ORIGINAL = ".original_module."
"""In keys of PEFT, the module before the training, which PEFT may save next to a module of ``modules_to_save``."""

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Modules that PEFT saves in full if the vocabulary has grown, even if no setting asks for it."""


def read_adapter(
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig | None,
    name: str,
    number: Scales,
    metadata: Mapping[str, AdapterConfig] | None = None,
    *,
    methods: tuple[str, ...] = (),
    excluded: Excluded | None = None,
    stacks: Sequence[AdapterModule] = (),
) -> Adapter:
    """Return the adapter in a file with these tensors; raises FormatError for unknown keys, or a factor A without B.

    ``config`` is PEFT's configuration. If it is None, the adapter is in the format of kohya or diffusers. These formats
    store the alpha of a module as a tensor with one element; ``number`` is a function that returns its value by key. If
    a module has no such tensor, its scale is computed from ``metadata``, which maps the name of each model of a
    pipeline to a configuration. ``name`` is the adapter's name in messages. ``methods`` is the kinds of adapters
    besides LoRA that are accepted: (), ``COMPOSED`` or ``MERGED``. Modules that ``excluded`` selects are not checked,
    and may be of any kind. ``stacks`` are the modules of stacked experts, whose keys do not follow the rules here.
    """
    read = _key_reader(methods, configured=config is not None)
    stacked = {key for one in stacks for key in one.factors}
    left = _left_keys([key for key in tensors if key not in stacked], read, config, excluded) if excluded else {}
    out = {key for keys in left.values() for key in keys} | stacked
    found: dict[tuple[str, str], ModuleKeys] = {}
    saved: dict[str, str] = {}
    originals: dict[str, str] = {}
    unknown = []
    for key, info in tensors.items():
        if key in out:
            continue
        part = read(key)
        if part is not None and part.part == "saved" and ORIGINAL in part.module:
            originals[key] = part.module
            continue
        if part is None or (part.part == "saved" and not _is_saved(part.module, config)):
            unknown.append(key)
            continue
        _check_values(key, info, name, number=part.part == "alpha")
        _check_axis(key, info, name, converted=methods == COMPOSED)
        if part.part == "saved":
            saved[part.module] = key
            continue
        one = found.setdefault((part.component, part.module), ModuleKeys())
        if part.part in one.keys:
            _raise_duplicate(name, key, one.keys[part.part])
        one.keys[part.part] = key
        one.part = part if part.part.startswith(("A", "B", *MERGED)) else one.part
    unknown += [key for key, module in originals.items() if module.replace(ORIGINAL, ".") not in saved]
    if unknown or not (found or saved or left or stacks):
        raise unknown_keys_error(unknown, name, configured=config is not None, methods=methods)
    check_halves(found.values(), name)
    file = AdapterFile(tensors, config, name, number, metadata or {}, kernels=methods == MERGED)
    modules = (*(module_of(one, file) for one in found.values()), *stacks)
    spelling = "PEFT" if config is not None else _spelling(found.values())
    notes = tuple(
        config_notes(modules, saved, config) if config is not None else assumed_notes(found.values(), file.metadata)
    )
    notes = (*notes, *_original_notes(list(originals)))
    return Adapter(name, modules, saved, config is not None and config.transposed, spelling, config, notes, left)


def _original_notes(keys: Sequence[str]) -> Iterator[str]:
    """Yield a note if an adapter has modules as they were before the training (``keys``)."""
    if keys:
        are = "is" if len(keys) == 1 else "are"
        yield (
            f"{count(len(keys), 'tensor')} of modules before the training (original_module), which PEFT does not load, "
            f"{are} left out: {listing(keys, where='')}"
        )


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
    """Return {name of an excluded module: keys of its tensors}.

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
            hint=f"Merge the adapter with the toolkit that made it{LEAVE_OUT if converted else ''}.",
        )


def _spelling(found: Any) -> str:
    return "kohya" if any(one.part is not None and one.part.joined for one in found) else "diffusers"
