"""Layers of another network of the same sizes are noted: the weights of their norms do not correlate with the others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.checkpoint.values.foreign_layers import OF_TWO_NETWORKS

LAYER = re.compile(r"layers?\.(\d+)\.")
State = dict[str, torch.Tensor]


def said(state: State, dtype: torch.dtype = torch.float32) -> list[str]:
    save_file({key: one.to(dtype).contiguous() for key, one in state.items()}, "m.safetensors")
    with open_checkpoint("m.safetensors") as checkpoint:
        return [note for note in checkpoint.notes if OF_TWO_NETWORKS in note]


def stack(layers: int, *, keep: float = 0.9, roles: int = 2, width: int = 256, seed: int = 0) -> State:
    """Norms of a network; those of successive layers have a correlation of ``keep``."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for role in range(roles):
        varied = torch.randn(width, generator=draw)
        for layer in range(layers):
            varied = keep * varied + (1 - keep**2) ** 0.5 * torch.randn(width, generator=draw)
            state[f"model.layers.{layer}.norm{role}.weight"] = 1 + varied / 10
    return state


def joined(first: State, second: State, border: int, end: int = 1000) -> State:
    """The layers of the first network, but from ``border`` up to ``end`` those of the second."""
    return {
        key: second[key] if (found := LAYER.search(key)) and border <= int(found.group(1)) < end else one
        for key, one in first.items()
    }


def norms_of(minilm: Path) -> State:
    return {key: one for key, one in load_file(minilm / "model.safetensors").items() if key.endswith("Norm.weight")}


def other_order(state: State) -> State:
    """The same network with its hidden units in another order, as of another training."""
    order = torch.randperm(len(next(iter(state.values()))), generator=torch.Generator().manual_seed(1))
    return {key: one[order] for key, one in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("border", [2, 3, 4])
def test_two_networks_are_noted(minilm: Path, border: int, dtype: torch.dtype) -> None:
    real = norms_of(minilm)
    (note,) = said(joined(real, other_order(real), border), dtype)
    assert f"in each of the parts 0 to {border - 1} and {border} to 5 of encoder.layer, but not between" in note
    warned = [one.what for row in cs.check("m.safetensors").rows for one in row.found if row.id == "shard"]
    assert warned == [note]


def test_a_layer_at_the_end_is_too_little(minilm: Path) -> None:
    real = norms_of(minilm)
    assert not said(joined(real, other_order(real), 5))
    assert not said(joined(other_order(real), real, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_real_network_is_not(minilm: Path, dtype: torch.dtype) -> None:
    real = norms_of(minilm)
    assert not said(real, dtype)
    assert not said({key: one + 0.02 * torch.randn(len(one)) for key, one in real.items()}, dtype)


def test_a_file_in_the_middle_and_a_border_within_a_layer_are_noted() -> None:
    first, second = stack(12), stack(12, seed=1)
    (note,) = said(joined(first, second, 4, 8))
    assert "0 to 3, 4 to 7 and 8 to 11 of model.layers" in note
    state = joined(first, second, 6)
    state["model.layers.5.norm1.weight"] = second["model.layers.5.norm1.weight"]
    assert len(said(state)) == 1


def test_a_last_layer_that_is_unlike_the_others_does_not_hide_them() -> None:
    state = joined(stack(9), stack(9, seed=1), 4)
    for role in (0, 1):
        state[f"model.layers.8.norm{role}.weight"] = state[f"model.layers.8.norm{role}.weight"].flip(0)
    assert len(said(state)) == 1


@pytest.mark.parametrize(
    "state",
    [
        stack(8),
        stack(8, keep=0.5),
        stack(8, keep=0),
        stack(8, keep=0.3),
        {key: torch.ones(256) for key in stack(8)},
        {key: 1 + (one - 1) / 100 for key, one in joined(stack(8), stack(8, seed=1), 4).items()},
        joined(stack(8), {key: torch.ones(256) for key in stack(8)}, 4),
        stack(4) | {f"model.layers.{n + 4}.norm{r}.weight": stack(4)[f"model.layers.{n}.norm{r}.weight"]
                    for n in range(4) for r in range(2)},
        joined(stack(8), stack(8, seed=1), 4) | {f"model.layers.{n}.norm2.weight": stack(8, roles=3)[
            f"model.layers.{n}.norm2.weight"] for n in range(8)},
        {key.replace("model.", "encoder."): one for key, one in stack(4).items()}
        | {key.replace("model.", "decoder."): one for key, one in stack(4, seed=1).items()},
        {f"models.{at}.{key}": one for at in range(2) for key, one in stack(4, seed=at).items()},
        joined(stack(8, width=64), stack(8, width=64, seed=1), 4),
        joined(stack(4, roles=1), stack(4, roles=1, seed=1), 2),
    ],
    ids=["one", "loose", "unrelated", "hardly related", "new", "hardly trained", "new layers", "repeated", "a role is of one",
         "encoder and decoder", "two models", "narrow", "one norm of few layers"],
)  # fmt: skip
def test_sound_networks_are_not(state: State) -> None:
    assert not said(state)


def chain(correlations: list[float]) -> State:
    """Norms whose successive layers have exactly these correlations."""
    draw = torch.randn(256, len(correlations) + 1, generator=torch.Generator().manual_seed(0))
    apart = torch.linalg.qr(draw - draw.mean(0))[0].T
    varied = [apart[0]]
    for one, other in zip(correlations, apart[1:], strict=True):
        varied.append(one * varied[-1] + (1 - one**2) ** 0.5 * other)
    return {f"model.layers.{at}.norm{role}.weight": 1 + one for role in (0, 1) for at, one in enumerate(varied)}


@pytest.mark.parametrize(
    ("correlations", "number"),
    [
        ([0.9, 0.4, 0, 0.4, 0.9], 1),
        ([0.9, 0.25, 0, 0.25, 0.9], 0),
        ([0.9, 0.4, 0.2, 0.4, 0.9], 0),
        ([0.9, 0.4, -0.2, 0.4, 0.9], 0),
    ],
)
def test_layers_of_a_network_have_to_correlate_clearly(correlations: list[float], number: int) -> None:
    assert len(said(chain(correlations))) == number


def test_norms_of_heads_are_not_compared() -> None:
    """Those of two networks correlate, as pairs of their values are rotated by the same angles."""
    state = joined(stack(8), stack(8, seed=1), 4)
    heads = {key.replace("norm", "k_norm"): one for key, one in stack(8, width=128, roles=1).items()}
    assert len(said(state | heads)) == 1


def test_the_files_of_a_folder_are_compared() -> None:
    Path("folder").mkdir()
    first, second, places = stack(6), stack(6, seed=1), {}
    for number, one, own in ((1, first, range(3)), (2, second, range(3, 6))):
        file = f"model-{number:05d}-of-00002.safetensors"
        some = {key: value for key, value in one.items() if int(key.split(".")[2]) in own}
        save_file(some, f"folder/{file}")
        places |= dict.fromkeys(some, file)
    Path("folder/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert any(OF_TWO_NETWORKS in note for note in cs.inspect("folder").notes)
