"""Configurations under which weights of the same shapes compute otherwise: a note where weights come together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..plan import Plan
from ..text import brief_repr, escape
from .model_folders import ModelFolder

__all__ = ["with_config_said"]

FIELDS = (
    "model_type",
    "num_attention_heads", "num_key_value_heads", "num_heads", "num_kv_heads", "n_head", "n_heads", "head_dim",
    "attention_heads", "encoder_attention_heads", "decoder_attention_heads", "multi_query", "new_decoder_architecture",
    "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "scoring_func",
    "rotary_emb_base", "rotary_pct", "rotary_dim", "partial_rotary_factor", "alibi", "position_embedding_type",
    "rope_interleaved", "sliding_window",
    "hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj", "parallel_attn",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon",
    "do_layer_norm_before", "do_stable_layer_norm", "scale_embedding", "use_parallel_residual",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
"""What a configuration says of how weights compute that their shapes do not tell."""
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "llm_config", "language_config")
ALIKE = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python": "gelu",
}
"""Names of one function."""
OF_GEMMA = ("gemma", "paligemma")
"""Models that compute with another activation than the older of their two fields says."""
LONGEST = 60


def with_config_said(
    plan: Plan, folders: Sequence[ModelFolder], donor: int = 0, given: tuple[Mapping[str, Any], str] | None = None
) -> Plan:
    """Return a plan with a note on each source whose configuration says that its weights compute otherwise.

    ``folders`` are those of its sources, ``donor`` is the place of the one whose configuration the output has; if it
    has none, the first that has one counts. ``given`` is that of a destination that is no source, and its name.

    A field counts that both have and that decides what weights of the same shapes compute.
    """
    taken = {one.source for step in plan.steps for one in step.inputs}
    models = [(source.name, folder.config) for source, folder in zip(plan.sources, folders, strict=False)]
    used = [model for number, model in enumerate(models) if number in taken and model[1]]
    if given is None or not given[0]:
        name, ours = next(iter([one for one in models[donor : donor + 1] if one[1]] or used), ("", {}))
    else:
        ours, name = given
    notes = [note for other, theirs in used if theirs is not ours for note in _note(other, theirs, name, ours)]
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _note(other: str, theirs: Mapping[str, Any], name: str, ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs in one line, if anything does."""
    found = _differing(*_parts_of_one_kind(theirs, ours)) if ours else ()
    said = [f"{field} is {one} in {escape(other)}, {here} in {escape(name)}" for field, one, here in found]
    if said:
        yield f"equal weights compute otherwise by the config.json beside them: {'; '.join(said)}"


def _parts_of_one_kind(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return two configurations; of a model of several parts, the part that the other one is."""
    for part in PARTS:
        inner, outer = theirs.get(part), ours.get(part)
        if isinstance(outer, dict) and not isinstance(inner, dict) and _is_kind(outer, theirs):
            return theirs, outer
        if isinstance(inner, dict) and not isinstance(outer, dict) and _is_kind(inner, ours):
            return inner, ours
    return theirs, ours


def _is_kind(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    kinds = [str(one.get("model_type", "")).removesuffix("_text") for one in (part, whole)]
    return kinds[0] == kinds[1] != ""


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the fields that differ and both values, those of parts too."""
    for field in FIELDS:
        if field not in theirs or field not in ours or _is_unused(field, theirs, ours):
            continue
        pair = [_meant(one[field]) for one in (theirs, ours)]
        if pair[0] != pair[1]:
            yield above + field, _said(theirs[field]), _said(ours[field])
    yield from ((above + field, _said(one), _said(here)) for field, one, here in _rotary(theirs, ours))
    for part in PARTS if not above else ():
        inner, outer = theirs.get(part), ours.get(part)
        if isinstance(inner, dict) and isinstance(outer, dict):
            yield from _differing(inner, outer, f"{part}.")


def _is_unused(field: str, *configs: Mapping[str, Any]) -> bool:
    if field == "sliding_window":
        return all(one.get("use_sliding_window", True) is False or one[field] is None for one in configs)
    if field == "hidden_act":
        return any(str(one.get("model_type")).startswith(OF_GEMMA) for one in configs)
    return any(one[field] is None for one in configs)  # then it is what the class makes of other fields


def _meant(value: Any) -> Any:
    return ALIKE.get(value, value) if isinstance(value, str) else value


def _rotary(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs of rotary embeddings, whichever way transformers spelled it."""
    one, here = _rope(theirs), _rope(ours)
    if one is None or here is None:
        return
    if (theta := one.pop("rope_theta", None)) != (other := here.pop("rope_theta", None)) and None not in (theta, other):
        yield "rope_theta", theta, other
    same = one.get("rope_type") == here.get("rope_type")
    if not same or any(one[name] != here[name] for name in one if name in here):
        former, later = (None if said == {"rope_type": "default"} else said for said in (one, here))
        yield "rope_scaling", former, later


def _rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a configuration says of rotary embeddings; None if it says it of each kind of layers."""
    found: dict[str, Any] = {"rope_type": "default"}
    for name in ("rope_scaling", "rope_parameters"):
        given = config.get(name)
        said = given if isinstance(given, dict) else {}
        for field, value in said.items():
            if isinstance(value, dict):
                return None
            found["rope_type" if field == "type" and "rope_type" not in said else field] = value
    found.pop("type", None)
    theta = config.get("rope_theta")
    return {**({} if theta is None else {"rope_theta": theta}), **found}


def _said(value: Any) -> str:
    """Return a value as JSON spells those that are short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return escape(value[:LONGEST] if isinstance(value, str) else brief_repr(value, LONGEST))
