"""Adapters that are no LoRA, told by their keys, and what to say of keys that no LoRA has. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import CheckpointError, ConfigError, FormatError
from ...util.text import count, escape, listing

__all__ = ["not_known"]

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
