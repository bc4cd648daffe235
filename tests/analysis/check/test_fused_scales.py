"""Scales of modules that vLLM fuses, far apart (nvfp4) or made equal (fp8, int8): ``ckpt check`` warns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
OTHERS = ("self_attn.o_proj", "mlp.down_proj")


def model(sizes: dict[str, float], *, packed: bool = False) -> Path:
    """Write four layers of nvfp4 whose global scales are 0.01, times ``sizes`` for some modules."""
    torch.manual_seed(0)
    state = {}
    for module in (f"model.layers.{i}.{name}" for i in range(4) for name in (*FUSED, *OTHERS)):
        scale = torch.tensor(0.01 * next((size for name, size in sizes.items() if module.endswith(name)), 1.0))
        blocks = (torch.rand(32, 2) + 0.5).to(torch.float8_e4m3fn)
        codes = torch.randint(0, 256, (32, 16), dtype=torch.uint8)
        if packed:
            state |= {f"{module}.weight_packed": codes, f"{module}.weight_global_scale": 1 / scale.reshape(1).clone()}
        else:
            state |= {f"{module}.weight": codes, f"{module}.weight_scale_2": scale}
        state[f"{module}.weight_scale"] = blocks
    folder = Path("m")
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    method = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    settings = method if packed else {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return folder


def said(folder: Path) -> list[str]:
    row = cs.check(folder).row("scales")
    assert row.looked_at
    return [one.what for one in row.found if "global scales" in one.what]


@pytest.mark.costly
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("module", "number"), [("k_proj", 12), ("gate_proj", 8), ("layers.2.self_attn.q_proj", 3)])
@pytest.mark.parametrize("size", [12.0, 1 / 12])
def test_global_scales_that_are_far_apart_are_a_warning(module: str, number: int, size: float, packed: bool) -> None:
    (found,) = said(model({module: size}, packed=packed))
    assert found.startswith(f"{number} tensors of global scales that differ by a factor of over 11")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"q_proj": 3.0, "k_proj": 0.5},  # calibrated apart, as some exporters do
        {"o_proj": 50.0, "down_proj": 1 / 50},  # not fused
        {"q_proj": 50.0, "k_proj": 50.0, "v_proj": 50.0},  # not fused with the MLP
        {"layers.1.mlp.gate_proj": 50.0, "layers.1.mlp.up_proj": 50.0},  # nor with other layers
    ],
)
def test_others_are_not(sizes: dict[str, float], packed: bool) -> None:
    assert not said(model(sizes, packed=packed))


LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
DTYPES = pytest.mark.parametrize("dtype", LARGEST)


def with_one_scale(
    dtype: torch.dtype,
    *,
    equal: bool,
    again: bool,
    inputs: bool = False,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    rounded: bool = False,
) -> Path:
    """Write weights with one scale each, perhaps made equal in fused modules, and perhaps quantised again with it.

    ``change`` is applied to the normally distributed weights; ``rounded`` scales are powers of two.
    """
    draw = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for layer in range(4):
        for names in (FUSED[:3], FUSED[3:], OTHERS[:1], OTHERS[1:]):
            weights = [torch.randn(128, 128, generator=draw) * (1 + at / 2) / 8 for at in range(len(names))]
            if change is not None:
                weights = [change(one) for one in weights]
            scales = [one.abs().max() / LARGEST[dtype] for one in weights]
            if rounded:
                scales = [torch.exp2(one.log2().floor()) for one in scales]
            for name, weight, own in zip(names, weights, scales, strict=True):
                scale = max(scales) if equal else own
                codes = (weight / (scale if again else own)).clamp(-LARGEST[dtype], LARGEST[dtype])
                module = f"model.layers.{layer}.{name}"
                state[f"{module}.weight"] = (codes if dtype.is_floating_point else codes.round()).to(dtype)
                state[f"{module}.weight_scale"] = scale.reshape(1).clone()
                if inputs:
                    state[f"{module}.input_scale"] = torch.tensor([0.02 * (layer + 1)])
    folder = Path("m")
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    kind = "float" if dtype.is_floating_point else "int"
    scheme = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "tensor"}
    settings = {
        "quant_method": "compressed-tensors", "format": f"{kind}-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return folder


def shared(folder: Path) -> list[str]:
    return [one.what for one in cs.check(folder).row("scales").found if "scales in modules that vLLM fuses" in one.what]


@DTYPES
def test_scales_that_were_made_equal_are_a_warning(dtype: torch.dtype) -> None:
    (found,) = shared(with_one_scale(dtype, equal=True, again=False))
    assert found.startswith("20 tensors of equal scales in modules that vLLM fuses")


@DTYPES
@pytest.mark.parametrize(("equal", "again"), [(False, False), (True, True)])
@pytest.mark.parametrize("inputs", [False, True])
def test_scales_of_their_own_and_codes_that_were_made_again_are_not(
    dtype: torch.dtype, equal: bool, again: bool, inputs: bool
) -> None:
    assert not shared(with_one_scale(dtype, equal=equal, again=again, inputs=inputs))


EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clipped": lambda weight: weight.clamp(-0.2, 0.2),
    "equally distributed": lambda weight: torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape),
    "ternary": lambda weight: torch.where(weight.abs() > 0.05, weight.sign() * 0.03, 0),
}


@pytest.mark.parametrize(
    ("dtype", "change"),
    [(one, name) for one in LARGEST for name in EXACT if one.is_floating_point or name != "ternary"],
)
def test_weights_with_the_same_largest_value_may_have_one_scale(dtype: torch.dtype, change: str) -> None:
    assert not shared(with_one_scale(dtype, equal=True, again=True, change=EXACT[change]))


@DTYPES
def test_rounded_scales_may_be_equal(dtype: torch.dtype) -> None:
    """All weights are between 2**n and 2**(n + 1) times the largest code, and saturate."""
    assert not shared(
        with_one_scale(
            dtype, equal=True, again=True, rounded=True, change=lambda weight: weight / weight.abs().max() * 0.7
        )
    )
