"""A LoRA adapter as PEFT writes it: its configuration and its weights in turn, merged into a base on paper."""

import json

import torch
from safetensors.torch import save

import ckptsurgeon as cs

from .target import Files, Target, in_parts, numbered

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"base": 2}, "modules_to_save": ["head"]}


def use(folder: str) -> None:
    cs.lora_merge("base.safetensors", [folder])


def make() -> Files:
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
    return {
        "adapter_config.json": json.dumps(CONFIG).encode(),
        "adapter_model.safetensors": save({f"base_model.model.base.{k}.weight": v for k, v in factors.items()}),
        "base.safetensors": save({"base.weight": torch.ones(4, 4), "head.weight": torch.ones(2, 2)}),
    }


TARGET = Target(in_parts("adapters", use), make, numbered)
