"""Plans, as JSON: read and carried out."""

import json
from pathlib import Path
from typing import Any

import torch

import ckptsurgeon as cs

from .target import Files, Target, beside, ending


def undated(plan: cs.Plan) -> bytes:
    """A plan whose sources may be copied."""
    data: dict[str, Any] = plan.to_json()
    for source in data["sources"]:
        for file in source["files"]:
            file["mtime_ns"] = None
    return json.dumps(data).encode()


def make() -> Files:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    plans = {"convert": cs.convert("a.pth"), "rename": cs.rename("a.pth", map=["a=c"])}
    plans["average"] = cs.average(["a.pth", "a.pth"])
    made = {f"{name}.json": undated(plan) for name, plan in plans.items()}
    return {"a.pth": Path("a.pth").read_bytes(), **made}


def use(path: str) -> None:
    cs.apply(path, "out.safetensors", force=True)


TARGET = Target(beside("plans", "input.json", use), make, ending(".json"))
