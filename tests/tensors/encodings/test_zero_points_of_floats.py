"""8-bit floats with zero points: those of compressed-tensors are subtracted, those of AutoRound end the command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

NAME = "model.layers.0.mlp.up_proj"


def stored(end: str, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and a scale for each row, in a file with zero points of this ending."""
    codes, scale = torch.randn(16, 64).to(torch.float8_e4m3fn), torch.rand(16, 1) / 100 + 0.01
    save_file({f"{NAME}.weight": codes, f"{NAME}.weight_scale": scale, f"{NAME}{end}": zero}, "codes.safetensors")
    return codes, scale


def test_zero_points_of_compressed_tensors_are_subtracted() -> None:
    zero = torch.randn(16, 1).to(torch.float8_e4m3fn)
    codes, scale = stored(".weight_zero_point", zero)
    cs.apply(cs.convert("codes.safetensors", dequantize=True, dtype="f32"), "out.safetensors")
    found = load_file("out.safetensors")
    assert list(found) == [f"{NAME}.weight"]
    assert torch.equal(found[f"{NAME}.weight"], (codes.float() - zero.float()) * scale)


@pytest.mark.parametrize("verb", ["convert", "merge", "average"])
def test_zero_points_of_autoround_are_not_ignored(verb: str) -> None:
    stored(".weight_zp", torch.full((16, 1), 3.0))
    verbs: dict[str, Callable[[], object]] = {
        "convert": lambda: cs.convert("codes.safetensors", dequantize=True),
        "merge": lambda: cs.merge(["codes.safetensors"] * 2, method="linear", weights=[1, 1]),
        "average": lambda: cs.average(["codes.safetensors"] * 2),
    }
    with pytest.raises(cs.CheckpointError, match="no decoder knows the zero points"):
        verbs[verb]()


def test_zero_points_of_autoround_are_copied() -> None:
    stored(".weight_zp", torch.full((16, 1), 3.0))
    cs.apply(cs.convert("codes.safetensors"), "out.safetensors")
    assert {key.rpartition(".")[2] for key in load_file("out.safetensors")} == {"weight", "weight_scale", "weight_zp"}
