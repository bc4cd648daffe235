"""What tests of layouts share: tensors converted as a user converts a file, and compared bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

__all__ = ["Tensors", "assert_same", "converted", "converted_and_noted"]

Tensors = dict[str, torch.Tensor]


def converted_and_noted(tensors: Tensors, layout: str, **options: Any) -> tuple[Tensors, str]:
    """Return the tensors in another layout, as they are written and verified, and the notes on the conversion."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, "before.safetensors")
    plan = cs.convert("before.safetensors", layout=layout, **options)
    cs.apply(plan, "after.safetensors", force=True)
    assert cs.verify("after.safetensors").ok
    return load_file("after.safetensors"), "\n".join(plan.notes)


def converted(tensors: Tensors, layout: str, **options: Any) -> Tensors:
    """Return the tensors in another layout, as they are written and verified."""
    return converted_and_noted(tensors, layout, **options)[0]


def assert_same(found: Tensors, wanted: Tensors) -> None:
    """Assert that two state dicts have the same keys and bits."""
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
