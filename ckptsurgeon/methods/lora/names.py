"""The names of an adapter's tensors in files (PEFT, kohya, diffusers), and adapters that are not LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import CheckpointError, ConfigError, FormatError
from ...util.text import count, escape, listing
from .composed import COMPOSED
from .config import CONVERTED, MERGE_WITH_PEFT
from .kinds import MERGED
from .rotated import ROTATED

__all__ = [
    "COMPONENTS",
    "DORA_SCALE",
    "LEAVE_OUT",
    "MID",
    "KeyParts",
    "composed_key_parts",
    "loose_key_parts",
    "peft_key_parts",
    "unknown_keys_error",
    "unknown_module",
]

# Adapters that are not LoRA, recognised by their keys, and the errors for unknown keys.

LOHA, LOKR = "a LoHa (Hadamard product)", "a LoKr (Kronecker product)"
PEFT_OFT = "an OFT of PEFT (orthogonal rotation)"
KINDS = {
    r"lora_mid(\.weight)?": "a LoCon with a Tucker (CP) decomposition",
    r"hada_w\d(_[ab])?(\.\w+)?": LOHA,
    r"lokr_w\d(_[ab])?(\.\w+)?": LOKR,
    r"hada_t\d(\.\w+)?": "a LoHa with a Tucker (CP) decomposition",
    r"lokr_t\d(\.\w+)?": "a LoKr with a Tucker (CP) decomposition",
    r"oft_(embedding_)?R(\.\w+)*": PEFT_OFT,
    r"oft_(blocks|diag|r)(\.\w+)*": "an OFT or BOFT of LyCORIS (orthogonal rotations)",
    r"boft_\w+(\.\w+)*": "a BOFT of PEFT (products of orthogonal rotations)",
    r"(diff|diff_b|set_weight|[wb]_norm)": "an adapter of whole differences (LyCORIS' full and norm)",
    r"([ab][12]|bm)\.weight": "a GLoRA",
    r"(ia3_l(\.\w+)*|on_input)": "an (IA)3",
    r"vera_\w+(\.\w+)*": "a VeRA",
}
"""{pattern for the end of a key: kind of adapter, in words}, for adapters other than LoRA.

LyCORIS (``lycoris/modules``) and peft 0.21 use these keys.
"""

MERGED_KINDS = (LOHA, LOKR, PEFT_OFT, *(kind for kind in KINDS.values() if "Tucker" in kind))
"""The kinds in ``KINDS`` that ``lora merge`` takes."""

HINTS = {
    "Tucker": "Merge it with ckpt lora merge.",
    "LoHa": CONVERTED["LOHA"],
    "LoKr": CONVERTED["LOKR"],
    "BOFT of PEFT": MERGE_WITH_PEFT,
    "OFT of PEFT": CONVERTED["OFT"],
    "OFT": "It multiplies the weights of its base, so a LoRA of it depends on the base: merge it with LyCORIS, which "
    "made it, and use ckpt lora extract with the merged model and the base. ComfyUI reads it, too.",
    "GLoRA": "Merge it with LyCORIS, which made it.",
    "LyCORIS": "Merge it with LyCORIS, which made it. ComfyUI reads it, too.",
    "(IA)3": "Merge it with PEFT or LyCORIS, whichever made it.",
    "VeRA": MERGE_WITH_PEFT,
}
"""{part of a kind in words: advice for such an adapter}

ComfyUI lists the kinds that it reads in ``comfy/weight_adapter``.
"""

TAKEN: Mapping[tuple[str, ...], str] = {
    (): "only LoRA can be used here",
    COMPOSED: "only LoRA, LoHa and LoKr can be used here",
    MERGED: "only LoRA, LoHa, LoKr and PEFT's OFT can be used here",
}
"""{beginnings of the roles that a verb accepts besides LoRA's roles: the adapters that it accepts, in words}"""

LEAVE_OUT = ", or leave these modules out with --exclude"
"""The end of a hint of ``ckpt lora convert``, without the full stop."""

_KINDS = {re.compile(rf"(.+)\.{ending}"): kind for ending, kind in KINDS.items()}


def unknown_keys_error(
    unknown: Sequence[str], name: str, *, configured: bool, methods: tuple[str, ...] = ()
) -> CheckpointError:
    """Return the error for ``unknown`` keys, which no LoRA has; if there are none, the error for an empty adapter.

    ``name`` is the adapter's name in messages; ``configured`` is true if the adapter has a PEFT configuration.
    ``methods`` is a key of ``TAKEN``: the kinds of adapters, besides LoRA, that the user's command accepts.
    """
    if not unknown:
        return FormatError(f"{escape(name)} is not an adapter: it has no tensors.", rule="no adapter")
    kinds = {kind: key for key in reversed(unknown) for kind in [_kind(key)] if kind}
    allowed = MERGED_KINDS if methods == MERGED else (LOHA, LOKR) if methods else ()
    kinds = {kind: key for kind, key in kinds.items() if kind not in allowed}
    if kinds:
        kind, key = min(kinds.items())
        hint = next((hint for name, hint in HINTS.items() if name in kind), "Merge it with the toolkit that made it.")
        if _JOINED.fullmatch(unknown_module(key)):
            hint = hint.replace("--to peft", "--to kohya")  # PEFT's names need the base
        return ConfigError(
            f"{escape(name)} is {kind}, as its key {escape(key)} shows; {TAKEN[methods]}.",
            hint=f"{hint[:-1]}{LEAVE_OUT}." if methods == COMPOSED else hint,
            details=unknown,
        )
    if not configured and all(key.startswith("base_model.") for key in unknown):
        return ConfigError(
            f"the keys of {escape(name)} are PEFT's, but its folder has no adapter_config.json, which contains the "
            "scale of the adapter.",
            hint="Give the folder that PEFT wrote, which has both files.",
        )
    return FormatError(
        f"{escape(name)} has {count(len(unknown), 'key')} that no LoRA adapter has: {listing(unknown)}.",
        hint="Give an adapter: a folder that PEFT wrote, or a file in the format of kohya or diffusers.",
        details=unknown,
        rule="unknown key",
    )


def _kind(key: str) -> str:
    """Return the kind of adapter that has this key, for messages; '' if no known kind has it."""
    return next((kind for pattern, kind in _KINDS.items() if pattern.fullmatch(key)), "")


def unknown_module(key: str) -> str:
    """Return the name of the module to which a tensor belongs; its key is one that no LoRA has."""
    found = next((one for one in (pattern.fullmatch(key) for pattern in _KINDS) if one), None)
    module = found[1] if found is not None else key.rpartition(".")[0]
    return _module(module.removeprefix("base_model.model."))


COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "controlnet")
"""The prefixes that diffusers has for the models of a pipeline; they come before the names of modules."""


MID = "mid"
"""The role of the core of a LoCon with a Tucker decomposition."""

DORA_SCALE = ".dora_scale"
"""The end of the keys of DoRA's magnitudes in LyCORIS."""


@dataclass(frozen=True)
class KeyParts:
    """The parts of the key of an adapter's tensor: its module, and its role (A, B, bias, magnitude, alpha or saved).

    "saved" is a tensor that the adapter saves in full. If ``joined``, the module's name has underscores instead of the
    model's dots. ``component`` is the name of a model in a pipeline of diffusers, '' if there is only one model.
    ``times`` is how many times the trained network adds the product of the factors.
    """

    module: str
    part: str
    embedding: bool = False
    joined: bool = False
    component: str = ""
    times: int = 1

    @property
    def name(self) -> str:
        """The name of the module in the file."""
        return f"{self.component}_{self.module}" if self.joined else self.module


_OUT_PROJ = ".base_layer.out_proj"
"""The output layer in torch's attention: PEFT 0.18 to 0.21 adds its adapter twice whenever the layer runs."""

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)[^.]+)?(\.weight|\.bias)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_OURS = re.compile(r"(?:^|\.)(?:lora_|hada_|lokr_|oft_|ia3_|vera_|dora_|token_adapter|trainable_tokens)")
_KOHYA = re.compile(r"(lora_[A-Za-z0-9]+|lycoris)_([^.]+)\.(?:lora_(down|up)\.weight|(alpha|dora_scale))")
_PROCESSOR = re.compile(r"(.+)\.processor\.(\w+)_lora\.(?:(down|up)\.weight|(alpha))")
_DOTTED = re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight|(.+)\.lora_(down|up)\.weight")
_COMPOSED = re.compile(r"(.+)\.(hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)")
_TUCKER = re.compile(r"(.+)\.(hada_t[12]|lokr_t2)")
_MID = re.compile(r"(lora_[A-Za-z0-9]+|lycoris)_([^.]+)\.lora_mid\.weight|(.+)\.lora_mid\.weight")
_ROTATED = re.compile(r"(.+)\.oft_(embedding_)?R(?:\.(?!weight$)[^.]+)?\.weight")
_JOINED = re.compile(r"(lora_[A-Za-z0-9]+|lycoris)_([^.]+)")
_SIDES = {"down": "A", "up": "B"}
_OTHERS = {"alpha": "alpha", "dora_scale": "magnitude"}


def peft_key_parts(key: str) -> KeyParts | None:
    """Return the parts of a key that PEFT writes for LoRA; None for any other key."""
    name = key.removeprefix("base_model.model.")
    if found := _FACTOR.fullmatch(name):
        module, embedding, side, ending = found.groups()
        if ending == ".bias":
            return KeyParts(_module(module), "bias") if side == "B" and not embedding else None
        return KeyParts(_module(module), side, bool(embedding), times=2 if module.endswith(_OUT_PROJ) else 1)
    if found := _MAGNITUDE.fullmatch(name):
        return KeyParts(_module(found[1]), "magnitude")
    return None if _OURS.search(name) else KeyParts(_module(name), "saved")


def _module(name: str) -> str:
    """Return a module's name without PEFT's additions: ``modules_to_save``, its ``default``, and ``base_layer``."""
    name = re.sub(r"\.modules_to_save(?:\.default)?(?=\.)", "", name)
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def composed_key_parts(key: str, methods: tuple[str, ...], *, configured: bool) -> KeyParts | None:
    """Return the parts of a key of an adapter: LoRA, LoHa, LoKr or, if ``methods`` is ``MERGED``, also OFT or Tucker.

    The role of a tensor of a LoHa or LoKr is the ending of its key, such as ``hada_w1_a`` or ``lokr_w2``. The role is
    ``oft_R`` for an OFT of PEFT, and ``hada_t1``, ``hada_t2``, ``lokr_t2`` or (in a LoCon) ``mid`` for the core of a
    Tucker decomposition. For any other key, returns the result of ``peft_key_parts`` if ``configured``, else of
    ``loose_key_parts``.
    """
    rotated = _ROTATED.fullmatch(key.removeprefix("base_model.model.")) if configured and methods == MERGED else None
    if rotated is not None:
        return KeyParts(_module(rotated[1]), ROTATED, bool(rotated[2]))
    if methods == MERGED and not configured and (middle := _MID.fullmatch(key)) is not None:
        prefix, joined, dotted = middle.groups()
        return KeyParts(joined, MID, joined=True, component=prefix) if joined else _loose_parts(dotted, MID)
    found = _COMPOSED.fullmatch(key) or (_TUCKER.fullmatch(key) if methods == MERGED else None)
    if found is None or (not configured and key.startswith("base_model.")):
        return peft_key_parts(key) if configured else loose_key_parts(key)
    module, part = found.groups()
    if configured:
        return KeyParts(_module(module.removeprefix("base_model.model.")), part)
    kohya = _JOINED.fullmatch(module)
    return KeyParts(kohya[2], part, joined=True, component=kohya[1]) if kohya else _loose_parts(module, part)


def loose_key_parts(key: str) -> KeyParts | None:
    """Return the parts of a key in the style of kohya or diffusers; None for any other key."""
    if key.startswith("base_model."):
        return None  # of PEFT: the scale is in adapter_config.json
    if found := _KOHYA.fullmatch(key):
        prefix, module, side, other = found.groups()
        return KeyParts(module, _SIDES[side] if side else _OTHERS[other], joined=True, component=prefix)
    if found := _PROCESSOR.fullmatch(key):
        module, layer, side, _ = found.groups()
        layer = "to_out.0" if layer == "to_out" else layer
        return _loose_parts(f"{module}.{layer}", _SIDES.get(side, "alpha"))
    if found := _DOTTED.fullmatch(key):
        return _loose_parts(found[1] or found[3], _SIDES[found[2] or found[4]])
    if key.endswith(DORA_SCALE):
        return _loose_parts(key.removesuffix(DORA_SCALE), "magnitude")
    if key.endswith(".alpha") and "." in key:
        return _loose_parts(re.sub(r"\.(?:lora|lora_linear_layer)$", "", key[: -len(".alpha")]), "alpha")
    part = peft_key_parts(key)
    return None if part is None or part.part == "saved" else _loose_parts(part.module, part.part, part.embedding)


def _loose_parts(module: str, part: str, embedding: bool = False) -> KeyParts:
    head = module.partition(".")[0]
    return KeyParts(module, part, embedding, component=head if head in COMPONENTS else "")
