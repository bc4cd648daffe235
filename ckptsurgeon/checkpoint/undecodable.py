"""Makes notes on quantised tensors that no program can decode, although their encoding is known."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..tensors.encodings._encoding import QuantisedTensor, QuantisedTensors
from ..tensors.encodings._methods import METHODS, family
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing, shape_text

if TYPE_CHECKING:
    from ..tensors.decoders._decoder import StatedSettings

__all__ = ["undecodable"]

Tensors = Mapping[str, TensorInfo]
SHOWN = 3
_NUMBERS = re.compile(r"\d+|\.[\w.]+")
"""Matches what differs in reasons that are the same for layers of other sizes."""
UNKNOWN = "an"
"""The family of tensors whose encoding is unknown."""
OTHER_LAYOUTS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
"""{method: (setting, values)}: with another value of the setting, a method stores other layouts."""
OF_MODULES = frozenset({"dynamic", "layer_quant_config", "layers", "module_config", "quantized_layers"})
"""Settings with other settings for some modules."""
WHOLE = ("gptq", "awq", "fp8", "mxfp4")
"""Methods all of whose layouts are known."""


def undecodable(
    path: str,
    codes: QuantisedTensors,
    tensors: Tensors,
    settings: Mapping[str, Any],
    noted: Collection[str],
    *,
    explained: bool,
) -> Iterator[str]:
    """Yield a note for each reason why quantised tensors cannot be decoded by any program.

    One reason is that the shapes of a tensor's parts contradict each other, the other that the tensor has no layout of
    the method in its settings. No values are read: notes on ``weight_shape`` and ``quant_state`` are made elsewhere.
    ``noted`` has the names of tensors that another note is about: they are left out. If ``explained`` is true, other
    notes already say why tensors have no known layout.
    """
    from ..tensors.decoders._decoder import StatedSettings

    stated, reasons, examples = StatedSettings(settings), dict[str, list[str]](), dict[str, str]()
    method, is_uniform = _known_method(settings), _is_uniform(settings)
    known = dict[tuple[Any, ...], str]()  # a hundred thousand tensors have few different kinds
    for coded in codes.tensors:
        if not coded.codes or coded.name in noted:
            continue
        parts = {end: tensors[key] for end, key in coded.parts.items()}
        kind = (
            "" if is_uniform else coded.name,
            coded.method,
            coded.shape,
            *((end, info.dtype, info.shape) for end, info in parts.items()),
        )
        if kind not in known:
            if family(coded.method) == UNKNOWN:
                known[kind] = _of_no_layout(method, parts) if method and not explained else ""
            else:
                known[kind] = _misfit(coded, parts, stated)
        if known[kind]:
            first = examples.setdefault(_NUMBERS.sub("#", known[kind]), known[kind])
            reasons.setdefault(first, []).append(coded.name)
    for reason, names in reasons.items():
        more = f" Likewise {listing(names[1:], SHOWN)}." if names[1:] else ""
        number = count(len(names), "quantised tensor")
        yield f"{escape(path)}: {number} cannot be decoded: of {escape(names[0])}, {reason}.{more}"


def _known_method(settings: Mapping[str, Any]) -> str:
    """Return the ``quant_method`` of settings if all of its layouts are known, '' otherwise."""
    method = str(settings.get("quant_method") or "")
    field, usual = OTHER_LAYOUTS.get(method, ("", ()))
    value = settings.get(field) if field else None
    is_usual = value is None or str(value).lower() in usual
    return method if method in WHOLE and method in METHODS and is_usual else ""


def _is_uniform(settings: Mapping[str, Any]) -> bool:
    """Return whether the same settings apply to every quantised module."""
    groups = settings.get("config_groups")
    return OF_MODULES.isdisjoint(settings) and not (isinstance(groups, dict) and len(groups) > 1)


def _of_no_layout(method: str, parts: Tensors) -> str:
    said = ", ".join(f"{end} {info.dtype} {shape_text(info.shape)}" for end, info in parts.items())
    return f"the parts {escape(said, 300)} are in no layout of {escape(method)}, its quant_method"


def _misfit(coded: QuantisedTensor, parts: Tensors, stated: StatedSettings) -> str:
    """Return the contradiction between the parts of a tensor, '' if there is none or its decoder is not known."""
    from ..tensors.decoders._decoder import MisfitError, Request, UndecodableError, decoded_weight

    try:
        decoded_weight(Request(coded, parts, stated))
    except MisfitError as error:
        return escape(str(error))
    except UndecodableError:
        return ""
    return ""
