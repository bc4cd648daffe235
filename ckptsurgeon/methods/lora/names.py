"""How files spell the tensors of an adapter (PEFT, kohya, diffusers), and adapters that are no LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import CheckpointError, ConfigError, FormatError
from ...util.text import count, escape, listing

__all__ = ["COMPONENTS", "DORA_SCALE", "Part", "loose_part", "not_known", "peft_part"]

# Adapters that are no LoRA, told by their keys, and what to say of keys that no LoRA has. Pure.

KINDS = {
    r"lora_mid(\.weight)?": "a LoCon with a Tucker (CP) decomposition",
    r"hada_[wt]\d(_[ab])?(\.\w+)?": "a LoHa (Hadamard product)",
    r"lokr_[wt]\d(_[ab])?(\.\w+)?": "a LoKr (Kronecker product)",
    r"(oft_(blocks|diag|[rR])|boft_\w+)(\.\w+)*": "an OFT (orthogonal rotation)",
    r"(diff|diff_b|set_weight|[wb]_norm)": "whole differences (LyCORIS' full and norm)",
    r"([ab][12]|bm)\.weight": "a GLoRA",
    r"(ia3_l(\.\w+)*|on_input)": "an (IA)3",
    r"vera_\w+(\.\w+)*": "a VeRA",
}
"""What the end of a key says of its adapter: LyCORIS (``lycoris/modules``) and peft 0.21 (``tuners``)."""

_KINDS = {re.compile(rf".+\.{ending}"): kind for ending, kind in KINDS.items()}


def not_known(unknown: Sequence[str], name: str, *, configured: bool) -> CheckpointError:
    """Return what to raise for keys that no LoRA has, or, where there are none, for an adapter without tensors.

    ``configured`` is whether there is a configuration of PEFT's.
    """
    if not unknown:
        return FormatError(f"{escape(name)} holds no adapter: it is empty.", rule="no adapter")
    kinds = {kind: key for key in reversed(unknown) for kind in [_kind(key)] if kind}
    if kinds:
        kind, key = min(kinds.items())
        return ConfigError(
            f"{escape(name)} is {kind}, as {escape(key)} shows, which is not supported: what is merged is LoRA.",
            hint="Merge it with the toolkit that made it.",
            details=unknown,
        )
    if not configured and all(key.startswith("base_model.") for key in unknown):
        return ConfigError(
            f"{escape(name)} has PEFT's names and no adapter_config.json beside it, which says its scale.",
            hint="Name the folder that PEFT wrote.",
        )
    return FormatError(
        f"{escape(name)} has {count(len(unknown), 'key')} that no LoRA has: {listing(unknown)}.",
        hint="Name an adapter: a folder that PEFT wrote, or a file of kohya's or diffusers'.",
        details=unknown,
        rule="unknown key",
    )


def _kind(key: str) -> str:
    """Return which adapter a key is of, '' for one that is not known either."""
    return next((kind for pattern, kind in _KINDS.items() if pattern.fullmatch(key)), "")


COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "controlnet")
"""What diffusers puts before the names of the models of a pipeline."""


DORA_SCALE = ".dora_scale"
"""How LyCORIS ends the key of DoRA's magnitudes."""


@dataclass(frozen=True)
class Part:
    """What a key says: of which module it is, and which part: A, B, bias, magnitude, alpha, or saved as it is.

    ``joined`` names have underscores where the model's have dots. ``component`` is the model of a pipeline. ``times``
    is how often the network that it was trained in adds it.
    """

    module: str
    part: str
    embedding: bool = False
    joined: bool = False
    component: str = ""
    times: int = 1


_OUT_PROJ = ".base_layer.out_proj"
"""Within torch's attention: PEFT adds this adapter twice, whenever the layer runs (peft 0.18 to 0.21)."""

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)[^.]+)?(\.weight|\.bias)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_OURS = re.compile(r"(?:^|\.)(?:lora_|hada_|lokr_|oft_|ia3_|vera_|dora_|token_adapter|trainable_tokens)")
_KOHYA = re.compile(r"(lora_[A-Za-z0-9]+|lycoris)_([^.]+)\.(?:lora_(down|up)\.weight|(alpha|dora_scale))")
_PROCESSOR = re.compile(r"(.+)\.processor\.(\w+)_lora\.(?:(down|up)\.weight|(alpha))")
_DOTTED = re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight|(.+)\.lora_(down|up)\.weight")
_SIDES = {"down": "A", "up": "B"}
_OTHERS = {"alpha": "alpha", "dora_scale": "magnitude"}


def peft_part(key: str) -> Part | None:
    """Return what a key of PEFT's says; None for one that is not known."""
    name = key.removeprefix("base_model.model.")
    if found := _FACTOR.fullmatch(name):
        module, embedding, side, ending = found.groups()
        if ending == ".bias":
            return Part(_module(module), "bias") if side == "B" and not embedding else None
        return Part(_module(module), side, bool(embedding), times=2 if module.endswith(_OUT_PROJ) else 1)
    if found := _MAGNITUDE.fullmatch(name):
        return Part(_module(found[1]), "magnitude")
    return None if _OURS.search(name) else Part(_module(name), "saved")


def _module(name: str) -> str:
    """Return a module's name without what PEFT wraps it in."""
    name = re.sub(r"\.modules_to_save(?:\.default)?(?=\.)", "", name)
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def loose_part(key: str) -> Part | None:
    """Return what a key of a single file says, in kohya's or diffusers' spelling; None for one that is not known."""
    if key.startswith("base_model."):
        return None  # PEFT's, whose scale is in a file beside it
    if found := _KOHYA.fullmatch(key):
        prefix, module, side, other = found.groups()
        return Part(module, _SIDES[side] if side else _OTHERS[other], joined=True, component=prefix)
    if found := _PROCESSOR.fullmatch(key):
        module, layer, side, _ = found.groups()
        layer = "to_out.0" if layer == "to_out" else layer
        return _loose(f"{module}.{layer}", _SIDES.get(side, "alpha"))
    if found := _DOTTED.fullmatch(key):
        return _loose(found[1] or found[3], _SIDES[found[2] or found[4]])
    if key.endswith(DORA_SCALE):
        return _loose(key.removesuffix(DORA_SCALE), "magnitude")
    if key.endswith(".alpha") and "." in key:
        return _loose(re.sub(r"\.(?:lora|lora_linear_layer)$", "", key[: -len(".alpha")]), "alpha")
    part = peft_part(key)
    return None if part is None or part.part == "saved" else _loose(part.module, part.part, part.embedding)


def _loose(module: str, part: str, embedding: bool = False) -> Part:
    head = module.partition(".")[0]
    return Part(module, part, embedding, component=head if head in COMPONENTS else "")
