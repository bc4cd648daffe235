"""``ckpt check`` compares model.safetensors with pytorch_model.bin in the same folder; equal copies are usual."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.checking.other_weights import OTHER_WEIGHTS

State = dict[str, torch.Tensor]


def state(seed: int = 0) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {f"layers.{n}.weight": torch.randn(64, 64, generator=draw) for n in range(4)}


def folder(other: State, name: str = "pytorch_model.bin", *, sharded: bool = False) -> str:
    Path("m").mkdir()
    Path("m/config.json").write_text(json.dumps({"model_type": "mine"}))
    if sharded:
        cs.apply(cs.convert(state()), "m", max_shard_size="40KB", force=True)
    else:
        save_file(state(), "m/model.safetensors")
    torch.save(other, f"m/{name}")
    return "m"


def said(path: str) -> list[str]:
    return [one.what for row in cs.check(path).rows for one in row.found if OTHER_WEIGHTS in one.what]


@pytest.mark.parametrize("sharded", [False, True])
def test_another_copy_is_noted(sharded: bool) -> None:
    (note,) = said(folder({**state(), "layers.2.weight": state(1)["layers.2.weight"]}, sharded=sharded))
    named = "the 2 shards" if sharded else "model.safetensors"
    assert note == f"pytorch_model.bin {OTHER_WEIGHTS} {named}: 1 tensor differs: layers.2.weight"


def test_another_shape_is_noted() -> None:
    (note,) = said(folder({**state(), "layers.1.weight": torch.ones(64, 63)}))
    assert note.endswith("1 tensor differs: layers.1.weight")


def test_a_weight_that_only_one_copy_has_is_noted() -> None:
    lacking = {key: one for key, one in state().items() if key != "layers.3.weight"}
    (note,) = said(folder({**lacking, "head.weight": state(1)["layers.0.weight"]}))
    shown = f"pytorch_model.bin {OTHER_WEIGHTS} model.safetensors"
    only = "1 tensor is only in model.safetensors: layers.3.weight; 1 tensor is only in pytorch_model.bin: head.weight"
    assert note == f"{shown}: {only}"


def test_copies_that_differ_in_both_ways_have_one_note() -> None:
    (note,) = said(folder({**state(), "layers.2.weight": torch.ones(64, 64), "head.weight": torch.zeros(64, 64)}))
    assert note.endswith("1 tensor differs: layers.2.weight; 1 tensor is only in pytorch_model.bin: head.weight")


@pytest.mark.parametrize(
    "other",
    [
        state(),
        {**state(), "embeddings.position_ids": torch.arange(64)[None]},
        {**state(), "rotary_emb.inv_freq": torch.ones(8)},
        {f"model.{key}": one for key, one in state(1).items()},
        {key.replace("s.3.weight", "s.3.gamma"): one for key, one in state().items()},
        {key: one.half() for key, one in state().items()},
        {**state(), "steps": torch.tensor(3)},
        {**state(), "again.weight": state()["layers.0.weight"]},
    ],
)
def test_an_equal_copy_is_not(other: State) -> None:
    assert not said(folder(other))


def test_other_files_are_not_compared() -> None:
    assert not said(folder(state(1), "training_args.bin"))


def test_a_damaged_copy_is_noted() -> None:
    path = Path(folder(state())) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    found = [one.what for row in cs.check("m").rows for one in row.found]
    cut = "pytorch_model.bin is truncated: the zip directory at its end is missing"
    assert f"a second file of weights cannot be read: {cut}" in found


def test_an_index_without_its_shards_is_not() -> None:
    folder(state())
    Path("m/pytorch_model.bin").unlink()
    Path("m/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"layers.0.weight": "a.bin"}}))
    assert not [one for row in cs.check("m").rows for one in row.found if "second copy" in one.what]
