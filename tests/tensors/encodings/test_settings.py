"""The settings of quantisation go where the codes go, so that the next step knows that they are codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.quantised import Quantised, fp8
from ...helpers.zoo import BY_NAME, IN, OUT, PLAIN, ZOO

BARE = Quantised("fp8-bare", "", lambda g: {".weight": fp8(g, OUT, IN)}, {"quant_method": "fp8"}, parameters=None)
"""Codes that only its config.json tells."""

EDITS: dict[str, Callable[[Path], cs.Plan]] = {
    "convert": cs.convert,
    "rename": lambda folder: cs.rename(folder, map=["model=decoder"]),
    "filter": lambda folder: cs.filter(folder, exclude=["model.norm"]),
    "passthrough": lambda folder: cs.merge([folder], method="passthrough"),
}


def is_refused(path: Path) -> bool:
    """Whether codes in a file are known as such: a cast of them is an error."""
    with pytest.raises(cs.PlanError, match="would use its codes as numbers") as error:
        cs.convert(path, dtype="bf16")
    return error.value.exit_code == 4


def sharded(model: Quantised, folder: Path, *, apart: Callable[[str], bool]) -> Path:
    """Write a model as two shards; the second has the tensors whose keys are ``apart``."""
    model.folder(folder)
    (folder / "model.safetensors").unlink()
    tensors, names = model.tensors(), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {key: names[apart(key)] for key in tensors}
    for name in names:
        save_file({key: one for key, one in tensors.items() if places[key] == name}, folder / name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.costly
@pytest.mark.parametrize("verb", EDITS)
@pytest.mark.parametrize("output", ["out.safetensors", "out.pth", "out"])
def test_codes_that_only_settings_tell_are_still_codes_in_the_output(verb: str, output: str, tmp_path: Path) -> None:
    cs.apply(EDITS[verb](BARE.folder(tmp_path / "m")), tmp_path / output)
    assert is_refused(tmp_path / output)
    cs.apply(cs.convert(tmp_path / output), tmp_path / "again.pth")
    cs.apply(cs.convert(tmp_path / "again.pth"), tmp_path / "third.safetensors")
    assert is_refused(tmp_path / "third.safetensors")


def test_codes_of_one_shard_are_still_codes_where_their_scales_are_not(tmp_path: Path) -> None:
    folder = sharded(BY_NAME["fp8-block"], tmp_path / "m", apart=lambda key: "scale" in key)
    cs.apply(cs.convert(folder / "model-00001-of-00002.safetensors"), tmp_path / "one.safetensors")
    assert is_refused(tmp_path / "one.safetensors")


def test_a_folder_whose_configuration_says_it_has_no_settings_in_its_weights(tmp_path: Path) -> None:
    plan = cs.convert(BARE.folder(tmp_path / "m"))
    cs.apply(plan, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "ckptsurgeon.json").read_text())["metadata"]
    cs.apply(plan, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["quantization_config"]) == BARE.settings


def test_tensors_that_are_no_codes_take_no_settings_along(tmp_path: Path) -> None:
    plan = cs.filter(BARE.folder(tmp_path / "m"), include=["model.norm"])
    assert "quantization_config" not in plan.metadata


def test_a_destination_that_keeps_its_codes_keeps_its_settings(tmp_path: Path) -> None:
    theirs = BY_NAME["gptq"].folder(tmp_path / "b")
    cs.apply(cs.convert(BARE.folder(tmp_path / "m")), tmp_path / "a.safetensors")
    plan = cs.transplant(tmp_path / "a.safetensors", theirs, include=["model.norm"])
    assert json.loads(plan.metadata["quantization_config"]) == BY_NAME["gptq"].settings


def test_what_a_user_says_of_that_entry_stays(tmp_path: Path) -> None:
    folder = BARE.folder(tmp_path / "m")
    assert cs.convert(folder, metadata={"quantization_config": "mine"}).metadata["quantization_config"] == "mine"
    assert "quantization_config" not in cs.convert(folder, metadata={"quantization_config": ""}).metadata


@pytest.mark.costly
@pytest.mark.parametrize("name", ["gptq", "awq", "bnb-nf4", "bnb-int8", "fp8-block", "mlx", "int4-or-8"])
def test_parts_whose_codes_are_in_another_shard_are_no_numbers(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name]
    codes = {one.codes for one in cs.open_checkpoint(model.folder(tmp_path / "whole")).codes.tensors}
    folder = sharded(model, tmp_path / "m", apart=lambda key: key not in codes)
    shard = folder / "model-00002-of-00002.safetensors"
    with cs.open_checkpoint(shard) as checkpoint:
        for source in (shard, checkpoint):
            with pytest.raises(cs.PlanError, match="without its codes") as error:
                cs.convert(source, dtype="float64")
            assert error.value.exit_code == 4
        plan = cs.convert(checkpoint)
    cs.apply(cs.convert(shard), tmp_path / "part.safetensors")
    with pytest.raises(cs.PlanError, match="without its codes"):
        cs.convert(tmp_path / "part.safetensors", dtype="float64")
    for notes in (plan.notes, cs.convert(folder / "model-00001-of-00002.safetensors").notes):
        assert any("codes or scales of 2 quantised tensors are in other shards" in note for note in notes)
    assert not any("other shards" in note for note in cs.convert(folder).notes)


def test_a_shard_alone_says_so_whatever_the_verb(tmp_path: Path) -> None:
    model = BY_NAME["fp8-block"]
    folder = sharded(model, tmp_path / "m", apart=lambda key: "scale" in key)
    shard = folder / "model-00001-of-00002.safetensors"
    one = "model-00001-of-00002.safetensors is one of 2 shards: the tensors of the other shards are not read"
    parts = "codes or scales of 2 quantised tensors are in other shards"
    plans = {
        "convert": cs.convert(shard), "transplant": cs.transplant(shard, shard),
        "merge": cs.merge([shard], method="passthrough"),
        "rename": cs.rename(shard, map=["model=decoder"]), "filter": cs.filter(shard, exclude=["model.norm"]),
    }  # fmt: skip
    for verb, plan in plans.items():
        notes = "\n".join(plan.notes)
        assert one in notes, verb
        assert parts in notes, verb
    assert one in cs.inspect(shard).notes
    assert not any("one of 2" in note for note in cs.inspect(folder).notes)
    shard.rename(folder / "model-00001-of-00001.safetensors")
    assert not any("one of" in note for note in cs.inspect(folder / "model-00001-of-00001.safetensors").notes)


@pytest.mark.parametrize("shards", [False, True])
def test_an_error_names_the_folder_that_was_given(shards: bool, tmp_path: Path) -> None:
    model = BY_NAME["bnb-nf4"]
    folder = (
        sharded(model, tmp_path / "m", apart=lambda key: "k_proj" in key) if shards else model.folder(tmp_path / "m")
    )
    plain = {f"{layer}.weight": torch.ones(OUT, IN).bfloat16() for layer in model.layers}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(cs.PlanError, match=r"is \(64, 128\) in plain\.safetensors, \(4096, 1\) in m; 1 other too"):
        cs.transplant(tmp_path / "plain.safetensors", folder)


def codes_of(model: Quantised, path: Path) -> set[str]:
    with cs.open_checkpoint(model.folder(path)) as whole:
        return {key for one in whole.codes.tensors for key in (one.codes, *one.more_codes)}


NO_NEIGHBOUR = (
    "unknown",
    "unknown-alone",
    "bytes-of-llama.cpp",
    "marlin",
    "nunchaku",
    "awq-16",
    "vptq",
    "sparse",
    "spqr",
)
"""Encodings whose parts are called as parts of plain networks are."""


@pytest.mark.parametrize("model", [one for one in ZOO if one.name not in NO_NEIGHBOUR], ids=lambda one: one.name)
def test_a_shard_of_codes_or_of_scales_is_known_by_its_index_alone(model: Quantised, tmp_path: Path) -> None:
    codes = codes_of(model, tmp_path / "whole")
    folder = sharded(model, tmp_path / "m", apart=lambda key: key not in codes)
    (folder / "config.json").unlink()
    plain = {*PLAIN, *model.biases()}
    for shard in folder.glob("*.safetensors"):
        with cs.open_checkpoint(shard) as opened:
            floats = [key for key, info in opened.items() if key not in plain and info.dtype.startswith(("fl", "bf"))]
            assert set(floats) <= set(opened.codes.by_key)
            assert not plain.intersection(opened.codes.by_key)
        if floats:
            with pytest.raises(cs.PlanError, match="would use its codes as numbers") as error:
                cs.convert(shard, dtype="float64")
            assert error.value.exit_code == 4


CERTAIN = {
    "fp8": ["weight_scale_inv"], "fp8-scale": ["weight_scale"], "nvfp4": ["weight_scale", "weight_scale_2"],
    "gptq": ["g_idx", "qzeros", "scales"], "awq": ["qzeros", "scales"], "mlx": ["scales", "biases"],
    "bnb": ["weight.absmax", "weight.quant_map"], "bnb-int8": ["SCB"], "experts": ["gate_up_proj_scale_inv"],
}  # fmt: skip


@pytest.mark.parametrize("name", CERTAIN)
def test_scales_alone_in_a_file_are_no_numbers(name: str, tmp_path: Path) -> None:
    state = {f"model.layers.0.q_proj.{end}": torch.ones(4, 4) for end in CERTAIN[name]}
    for path, scale in ((tmp_path / "a.safetensors", 1), (tmp_path / "b.safetensors", 2)):
        save_file({"model.norm.weight": torch.ones(4)} | {key: one * scale for key, one in state.items()}, path)
        with cs.open_checkpoint(path) as opened:
            assert set(opened.codes.by_key) == set(state)
    with pytest.raises(cs.PlanError, match="without its codes"):
        cs.convert(tmp_path / "a.safetensors", dtype="bf16")
    with pytest.raises(cs.PlanError, match="without its codes"):
        cs.average([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    cs.apply(cs.convert(tmp_path / "a.safetensors"), tmp_path / "out.safetensors")


def test_parts_with_names_of_networks_are_numbers(tmp_path: Path) -> None:
    """A scale beside the weight that it scales, gains, kinds of scales that one alone has."""
    names = ["a.weight", "a.weight_scale", "b.scales", "c.biases", "d.scale", "e.k_scale", "f.codebooks", "g_scales",
             "h.perm", "i.weight_bias", "logit_scale"]  # fmt: skip
    save_file({key: torch.ones(4, 4) for key in names}, tmp_path / "a.safetensors")
    index = {
        "weight_map": dict.fromkeys(names, "a.safetensors") | dict.fromkeys(["d.weight", "e.weight"], "b.safetensors")
    }
    for beside in (False, True):
        if beside:
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with cs.open_checkpoint(tmp_path / "a.safetensors") as opened:
            assert not opened.codes


def test_gains_of_a_network_are_numbers_in_a_folder_that_is_quantised(tmp_path: Path) -> None:
    gains = ["norm.scale", "logit_scale", "norm.bias", "lora.A", "svd.s"]
    folder = BARE.folder(tmp_path / "m")
    save_file({key: torch.ones(4) for key in gains} | {"x.weight": torch.ones(2, 2)}, folder / "gains.safetensors")
    assert cs.convert(folder / "gains.safetensors", dtype="bf16").counts == {"cast": len(gains) + 1}
