"""Checks that adapter_config.json describes the stored LoRA factors A and B: their ranks, modules and settings."""

from __future__ import annotations

from functools import partial

from ..check import Check
from ..note_findings import noted
from ._against import no_adapter

__all__ = ["CHECK"]

CHECK = Check(
    "adapter-config", "adapter_config.json describes the factors", partial(noted, id="adapter-config"), no_adapter
)
