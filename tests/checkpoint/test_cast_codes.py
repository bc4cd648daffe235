"""Weights that are codes without their scales, as a program that casts a quantised model tensor by tensor writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.tensors.bitsandbytes_values import VALUES as LEVELS

Run = Callable[..., Any]
SAID = "perhaps they are quantised codes that were cast without their scales"


def weights(layers: int = 6, size: float = 0.02) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"layers.{i}.up.weight": size * torch.randn(256, 256, generator=draw) for i in range(layers)}


def cast_codes(scheme: str, dtype: torch.dtype, layers: int = 6) -> str:
    """A file with the codes of the first ``layers`` layers, and with the weights of the others."""
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    save_file(weights(), "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "coded")
    coded = {
        key: value for key, value in load_file("coded/model.safetensors").items() if key.endswith((".weight", ".codes"))
    }
    state = {**weights(), **{key: value for key, value in coded.items() if int(key.split(".")[1]) < layers}}
    save_file({key: value.to(dtype) for key, value in state.items()}, "cast.safetensors")
    return "cast.safetensors"


def notes_of(path: str) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if SAID in note]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("scheme", "kind"), [("fp8-block", "8-bit floats"), ("int8", "whole numbers")])
def test_codes_are_noted(scheme: str, kind: str, dtype: torch.dtype) -> None:
    (said,) = notes_of(cast_codes(scheme, dtype))
    assert said.startswith(
        f"the values of 6 of 6 matrices that were looked at are {kind} above 32: {SAID}: layers.0.up"
    )


def test_codes_in_some_layers_are_noted() -> None:
    (said,) = notes_of(cast_codes("fp8-block", torch.bfloat16, layers=2))
    assert said.endswith("layers.0.up.weight, layers.1.up.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ([*range(-7, 8)], "whole numbers up to 7"),
        ([*range(-8, 8)], "whole numbers up to 8"),
        ([*range(16)], "whole numbers up to 15"),
        ([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6], "4-bit floats"),
        (LEVELS["nf4"], "levels of nf4"),
        (LEVELS["fp4"], "levels of fp4"),
    ],
)
def test_codes_of_four_bits_are_noted(codes: list[float], kind: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.tensor(codes, dtype=torch.float64)
    state = {
        key: table[torch.randint(0, len(codes), one.shape, generator=draw)].to(dtype) for key, one in weights().items()
    }
    save_file(state, "cast.safetensors")
    (said,) = notes_of("cast.safetensors")
    assert f"6 of 6 matrices that were looked at are {kind}: {SAID}" in said


def test_codes_in_one_of_many_shards_are_noted() -> None:
    """As if one shard were of another copy: its matrices are looked at, wherever it stands."""
    state = weights(layers=60)
    state |= {
        key: (100 * one / one.abs().max()).round() for key, one in weights(60).items() if int(key.split(".")[1]) >= 57
    }
    index = {}
    Path("m").mkdir()
    for shard in range(20):
        part = {key: one for key, one in state.items() if int(key.split(".")[1]) // 3 == shard}
        name = f"model-{shard + 1:05d}-of-00020.safetensors"
        save_file(part, f"m/{name}")
        index |= dict.fromkeys(part, name)
    Path("m/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (said,) = notes_of("m")
    assert said.endswith("layers.57.up.weight, layers.59.up.weight")


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["convert", "average", "filter", "transplant", "diff", "inspect"])
def test_every_verb_has_the_note(verb: str, ckpt: Run) -> None:
    path = cast_codes("fp8-block", torch.bfloat16)
    save_file(weights(), "whole.safetensors")
    more = {
        "convert": ("--dtype", "fp16"), "average": ("whole.safetensors",), "filter": ("--exclude", "layers.0.**"),
        "transplant": ("whole.safetensors", "--dtype", "keep"), "diff": ("whole.safetensors",), "inspect": (),
    }[verb]  # fmt: skip
    output = () if verb in ("diff", "inspect") else ("-o", "out.safetensors")
    done = ckpt(verb, path, *more, *output)
    assert done.code in (0, 1), done
    assert SAID in " ".join((done.out + done.err).split()), done


def test_check_warns_of_them() -> None:
    rows = {row.id: row for row in cs.check(cast_codes("fp8-block", torch.bfloat16)).rows}
    assert any(SAID in one.what for one in rows["weight-size"].found)


HEALTHY = {
    "weights": weights(),
    "large weights": weights(size=30),
    "ternary": {f"{i}": torch.randint(-1, 2, (256, 256)).float() for i in range(6)},
    "some whole numbers": {f"{i}": torch.tensor([0.0, 1, 12])[torch.randint(0, 3, (256, 256))] for i in range(6)},
    "counts": {f"{i}": torch.randint(0, 21, (256, 256)).float() for i in range(6)},
    "decoded with powers of two": {
        key: (value * 2**9).to(torch.float8_e4m3fn).float() / 2**9 for key, value in weights().items()
    },
    "one matrix of its role": {**weights(), "x.weight": torch.randint(-127, 128, (256, 256)).float()},
    "one of two layers": {
        "layers.0.up.weight": torch.randint(-127, 128, (256, 256)).float(),
        "layers.1.up.weight": torch.ones(256, 256),
    },
    "quantiles": {f"{i}": torch.linspace(-1, 1, 16)[torch.randint(0, 16, (256, 256))] for i in range(6)},
    "decoded nf4": {
        f"{i}": (torch.tensor(LEVELS["nf4"])[torch.randint(0, 16, (4096, 16))] * torch.rand(4096, 1)).reshape(256, 256)
        for i in range(6)
    },
    "ones": {f"{i}": torch.full((256, 256), 64.0) for i in range(6)},
    "positions": {f"{i}": torch.arange(65536).float().reshape(256, 256) for i in range(6)},
    "integers": {f"{i}": torch.randint(-127, 128, (256, 256)) for i in range(6)},
    "narrow": {f"{i}": torch.randint(-127, 128, (2048, 32)).float() for i in range(6)},
    "infinite": {f"{i}": torch.full((256, 256), torch.inf) for i in range(6)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_other_values_are_not(name: str) -> None:
    save_file(HEALTHY[name], "x.safetensors")
    assert not notes_of("x.safetensors")


def test_one_matrix_of_codes_is_noted_if_other_layers_have_weights() -> None:
    state = {**weights(), "layers.0.up.weight": torch.randint(-127, 128, (256, 256)).float()}
    save_file(state, "x.safetensors")
    (said,) = [note for note in notes_of("x.safetensors") if SAID in note]
    assert said.startswith("the values of 1 of 6 matrices that were looked at are whole numbers above 32")
    assert said.endswith(": layers.0.up.weight")


@pytest.mark.parametrize("scheme", ["fp8-block", "int8"])
def test_one_matrix_of_codes_among_quantised_layers_is_noted(scheme: str) -> None:
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    save_file(weights(), "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "coded")
    path = Path("coded/model.safetensors")
    state = load_file(path)
    codes = next(state[key] for key in ("layers.2.up.codes", "layers.2.up.weight") if key in state)
    others = {key: one for key, one in state.items() if not key.startswith("layers.2.")}
    save_file({**others, "layers.2.up.weight": codes.to(torch.bfloat16)}, path)
    with open_checkpoint("coded") as checkpoint:
        (said,) = (note for note in checkpoint.notes if SAID in note)
    assert said.endswith("layers.2.up.weight")
    healthy = {**others, "layers.2.up.weight": weights()["layers.2.up.weight"].to(torch.bfloat16)}
    save_file(healthy, path)
    with open_checkpoint("coded") as checkpoint:
        assert not [note for note in checkpoint.notes if SAID in note]
