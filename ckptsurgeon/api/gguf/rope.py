"""The rotary embedding of a model of transformers for GGUF: entries of the metadata, and a tensor of divisors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import PlanError
from ...planning.llama_cpp.rope_factors import FrequencyScaling, rope_factors
from ...util.text import brief_repr, escape
from .fields import check_only, defaults_of, number_in

__all__ = ["factors_of", "rope_entries", "rope_fields", "theta_of"]

_FIELDS = ("rope_parameters", "rope_scaling")
_LOCAL_THETA = 10000.0
"""The only rotary base that llama.cpp has for Gemma 3's layers with a sliding window; it is not in the metadata."""
_DEFAULT, _LLAMA_3 = "default", "llama3"
_WITH_FACTORS = ("longrope", "su")
"""Methods with a factor for each rotated pair of a head, which a GGUF file has in tensors."""
_OF_LLAMA_3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_entries(
    config: Mapping[str, Any], *, of_deepseek: bool = False, rounds: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (entry, value) for the rotary embedding; raises PlanError for a scaling that GGUF cannot describe.

    ``of_deepseek`` is true for DeepSeek's YaRN, which also scales the attention scores. If ``rounds`` is true, YaRN
    with ``truncate: false`` is accepted, although llama.cpp always rounds the range of frequencies.
    """
    fields = rope_fields(config)
    yield "rope.freq_base", str(theta_of(fields, config))
    kind = _kind(fields)
    for stated in (config, fields):
        check_only(stated, "partial_rotary_factor", 1.0)
    if kind in (_DEFAULT, _LLAMA_3):
        return
    if kind not in ("linear", "yarn"):
        has_factors = kind in _WITH_FACTORS
        why = (
            "for which GGUF needs a separate tensor that ckpt cannot make"
            if has_factors
            else "which llama.cpp's metadata cannot express"
        )
        raise PlanError(
            f"config.json scales the rotary embedding with the method {escape(kind, 40)}, {why}.",
            hint="Convert the model with llama.cpp's convert_hf_to_gguf.py."
            if has_factors
            else "Convert without changing the layout: --layout keep.",
        )
    factor = number_in(fields, "factor")
    if kind == "yarn" and of_deepseek:
        yield from _yarn_of_deepseek(fields, factor)
    elif kind == "yarn":
        _check_yarn(fields, factor, (True, False) if rounds else (True,))
    yield "rope.scaling.type", kind
    yield "rope.scaling.factor", str(factor)
    if type(fields.get("original_max_position_embeddings")) is int:
        yield "rope.scaling.original_context_length", str(fields["original_max_position_embeddings"])


def factors_of(config: Mapping[str, Any], architecture: str, size: int) -> tuple[float, ...]:
    """Return the divisors of the rotary frequencies for Llama 3's scaling; () for any other scaling.

    ``size`` is the size of a head. Raises PlanError if a field is missing or not valid, or if llama.cpp has no such
    tensor for the architecture.
    """
    fields = rope_fields(config)
    if _kind(fields) != _LLAMA_3:
        return ()
    if architecture != "llama":
        raise PlanError(
            f"config.json scales the rotary embedding with the method {_LLAMA_3}, which llama.cpp does not support for "
            f"the architecture {architecture}.",
            hint="Convert without changing the layout: --layout keep.",
        )
    for name in _OF_LLAMA_3:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise PlanError(
                f"config.json scales the rotary embedding with the method "
                f"{_LLAMA_3}, and its {name} is {brief_repr(value, 40)}, "
                "not a number above 0 and below 10^9.",
                hint="Correct config.json.",
            )
    factor, low, high, context = (float(fields[name]) for name in _OF_LLAMA_3)
    if low >= high:
        raise PlanError(
            f"config.json scales the rotary embedding with the method "
            f"{_LLAMA_3}, and its low_freq_factor is {low:g}, which is not "
            f"below its high_freq_factor, {high:g}.",
            hint="Correct config.json.",
        )
    return rope_factors(theta_of(fields, config), size, FrequencyScaling(factor, low, high, context))


def rope_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the rotary embedding; if layers differ, the fields for layers without a sliding window."""
    fields: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    for name in _FIELDS:
        stated = config.get(name)
        if isinstance(stated, dict):
            whole = stated.get("full_attention")
            _check_local(stated.get("sliding_attention"))
            fields |= whole if isinstance(whole, dict) else stated
    _check_local({"rope_theta": config.get("rope_local_base_freq")})
    return fields


def _kind(fields: Mapping[str, Any]) -> str:
    return str(fields.get("rope_type") or fields.get("type") or _DEFAULT)


def theta_of(fields: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """Return the base of the rotary embedding; raises PlanError if it is not a number."""
    return number_in(fields, "rope_theta", defaults_of(config).theta)


def _check_factor(factor: float) -> None:
    if factor < 1:
        raise PlanError(
            f"config.json gives the factor {factor:g} of yarn, but it must be at least 1.", hint="Correct config.json."
        )


def _yarn_of_deepseek(fields: Mapping[str, Any], factor: float) -> Iterator[tuple[str, str]]:
    """Yield the entries of DeepSeek's YaRN; raises PlanError for values that llama.cpp does not support.

    llama.cpp reads only ``mscale_all_dim``, and assumes that ``mscale`` has the same value. transformers computes a
    scale from each of the two fields, and multiplies the rotary embedding by the quotient: 1 if the fields are equal.
    """
    _check_factor(factor)
    check_only(fields, "attention_factor", 1.0)
    check_only(fields, "truncate", True)
    scale = number_in(fields, "mscale_all_dim", 0)
    if not scale or number_in(fields, "mscale", 0) != scale:
        raise PlanError(
            f"config.json gives mscale as {brief_repr(fields.get('mscale'), 40)} and mscale_all_dim as "
            f"{brief_repr(fields.get('mscale_all_dim'), 40)}, but llama.cpp's yarn of DeepSeek needs two equal "
            "numbers above 0.",
            hint="Convert without changing the layout: --layout keep.",
        )
    yield "rope.scaling.yarn_log_multiplier", str(0.1 * scale)
    for name in ("beta_fast", "beta_slow"):
        if fields.get(name) is not None:
            yield f"rope.scaling.yarn_{name}", str(number_in(fields, name))


def _check_yarn(fields: Mapping[str, Any], factor: float, truncates: tuple[bool, ...]) -> None:
    """Raise PlanError if a field of YaRN has a value that llama.cpp does not support.

    ``truncates`` has the accepted values of ``truncate``.
    """
    _check_factor(factor)
    own = 0.1 * math.log(factor) + 1
    stated = fields.get("attention_factor")
    if not (isinstance(stated, float) and math.isclose(stated, own, rel_tol=1e-6)):
        check_only(fields, "attention_factor", own)
    for name, *allowed in (
        ("beta_fast", 32),
        ("beta_slow", 1),
        ("truncate", *truncates),
        ("mscale",),
        ("mscale_all_dim",),
    ):
        check_only(fields, str(name), *allowed)


def _check_local(stated: object) -> None:
    theta = stated.get("rope_theta") if isinstance(stated, dict) else None
    if isinstance(theta, (int, float)) and theta != _LOCAL_THETA:
        raise PlanError(
            f"the rotary embedding of the layers with a sliding window has the base {theta:g}, but llama.cpp uses "
            f"{_LOCAL_THETA:g}.",
            hint="Convert without changing the layout: --layout keep.",
        )
