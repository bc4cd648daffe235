"""Experts that transformers quantised and saved itself have joined scales, which are read as those of single experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status
from ckptsurgeon.checkpoint.joined_scales import apart
from ckptsurgeon.tensors.info import Storage, TensorInfo

from ..helpers.depth import FULL
from ..helpers.fp8_experts import KINDS, PLAIN, SAVED, decoded, quantised, saved

Run = Callable[..., Any]
FILE = f"{SAVED}/model.safetensors"
SINGLE = [kind for kind in KINDS if kind != "granite"]
"""The kinds of which transformers saves the codes of single experts."""


def failures(place: str = SAVED) -> list[str]:
    return [one.what for row in cs.check(place).rows for one in row.found if one.status == Status.FAIL]


def change(keep: Callable[[str], bool] = lambda key: True, **others: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state = {key: value for key, value in load_file(FILE).items() if keep(key)}
    for end, made in others.items():
        state |= {key: made(value).contiguous() for key, value in state.items() if key.endswith(end)}
    save_file(state, FILE, {"format": "pt"})


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_check_passes_and_all_weights_are_known(kind: str) -> None:
    saved(kind)
    assert failures() == []
    found, plain = cs.inspect(SAVED), cs.inspect(PLAIN)
    assert found.parameters == plain.parameters
    names = {one.name: one.shape for one in found.codes.tensors}
    assert {name: shape for name, shape in names.items() if name in plain.tensors} == {
        key: plain.tensors[key].shape for key in names
    }
    assert set(found.codes.methods()) == {"fp8 with block scales"}
    joined = [note for note in found.notes if "joined scales are read" in note]
    assert len(joined) == (kind in SINGLE)


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_decoded_weights_are_those_of_transformers(kind: str, ckpt: Run) -> None:
    saved(kind)
    done = ckpt("convert", SAVED, "--dequantize", "--dtype", "float32", "-o", "out")
    assert done.code == 0, done.err
    assert ckpt("verify", "out").code == 0
    from transformers import AutoModelForCausalLM

    network, told = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"]
    state, wanted = network.state_dict(), decoded(SAVED)
    assert state.keys() == wanted.keys()
    assert [key for key, value in wanted.items() if not torch.equal(state[key], value)] == []


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_load_as_the_model_itself(kind: str, ckpt: Run) -> None:
    saved(kind)
    done = ckpt("convert", SAVED, "-o", "copy")
    assert done.code == 0, done.err
    assert ckpt("verify", "copy").code == 0
    one, other = quantised(SAVED).state_dict(), quantised("copy").state_dict()
    assert [key for key, value in one.items() if not torch.equal(value.float(), other[key].float())] == []
    assert ckpt("diff", SAVED, "copy", "--values").code == 0
    assert any(key.endswith("_proj_scale_inv") for key in load_file("copy/model.safetensors")) is (kind == "granite")
    done = ckpt("merge", SAVED, PLAIN, "--method", "linear", "--weights", "1,1", "-o", "merged")
    assert done.code == 0, done.err
    assert failures("merged") == []
    quantised("merged")


@pytest.mark.costly
@pytest.mark.parametrize("scales", ["gate_up_proj_scale_inv", "down_proj_scale_inv", "_proj_scale_inv"])
@pytest.mark.parametrize("layer", ["layers.1.", ""])
@pytest.mark.parametrize("kind", ["qwen3", "granite"])
def test_removed_scales_are_a_failure(kind: str, layer: str, scales: str) -> None:
    saved(kind)
    change(lambda key: not (layer in key and key.endswith(scales)))
    matrices = {"gate_up_proj_scale_inv": 2, "down_proj_scale_inv": 1}.get(scales, 3)  # of each of four experts
    number = 4 * matrices if kind == "qwen3" else (matrices + 1) // 2  # Granite has one tensor for all experts
    number *= 1 if layer else 2
    (said,) = failures()
    assert said.startswith(f"{number} quantised tensor")
    assert "lack" in said


@pytest.mark.skipif(FULL, reason="a case of the test above")
def test_removed_scales_of_one_layer_are_a_failure() -> None:
    test_removed_scales_are_a_failure("granite", "layers.1.", "gate_up_proj_scale_inv")


@pytest.mark.long
def test_scales_of_fewer_experts_than_there_are_fail() -> None:
    saved("mixtral")
    change(down_proj_scale_inv=lambda value: value[:-1])
    said = next(one for one in failures() if one.startswith("2 quantised tensors lack weight_scale_inv, which "))
    assert ".experts.3.w2.weight" in said


@pytest.mark.long
def test_codes_of_an_expert_that_are_lost_fail() -> None:
    saved("qwen3")
    change(lambda key: not key.endswith("layers.1.mlp.experts.2.up_proj.weight"))
    (said,) = failures()
    assert said.startswith("1 quantised tensor lacks weight, which ")


@pytest.mark.long
def test_shards_are_joined_before_scales_are_taken_apart(ckpt: Run) -> None:
    saved("qwen3")
    state, names = load_file(FILE), [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    first = {key: value for key, value in state.items() if "layers.1." not in key or ".experts.0" in key}
    rest = {key: value for key, value in state.items() if key not in first}
    for name, shard in zip(names, (first, rest), strict=True):
        save_file(shard, f"{SAVED}/{name}", {"format": "pt"})
    Path(FILE).unlink()
    places = {**dict.fromkeys(first, names[0]), **dict.fromkeys(rest, names[1])}
    index = {"metadata": {"total_size": sum(one.nbytes for one in state.values())}, "weight_map": places}
    Path(f"{SAVED}/model.safetensors.index.json").write_text(json.dumps(index))
    assert failures() == []
    for name in names:
        assert failures(f"{SAVED}/{name}") == []
    done = ckpt("convert", SAVED, "--dequantize", "-o", "out")
    assert done.code == 0, done.err


@pytest.mark.long
def test_blocks_with_rows_of_two_matrices_are_copied_and_refused_for_computing(ckpt: Run) -> None:
    saved("qwen3", moe_intermediate_size=48)  # 96 rows of gate and up: three blocks
    assert failures() == []
    assert ckpt("convert", SAVED, "-o", "copy").code == 0
    copy, state = load_file("copy/model.safetensors"), load_file(FILE)
    gates = [key for key in state if key.endswith("gate_up_proj_scale_inv")]
    assert gates
    assert all(torch.equal(copy[key], state[key]) for key in gates)
    assert ckpt("convert", SAVED, "--dequantize", "-o", "out").code == 4


def test_in_place_names_are_not_changed_by_halves(ckpt: Run) -> None:
    saved("qwen3")
    before = Path(FILE).read_bytes()
    assert ckpt("rename", SAVED, "--in-place", "--map", "lm_head=head").code == 4
    assert Path(FILE).read_bytes() == before


def test_scales_without_a_matrix_stay_joined() -> None:
    state = {"experts.gate_up_proj_scale_inv": torch.rand(2, 2, 1), "experts.0.gate_proj.bias": torch.rand(2)}
    save_file(state, "x.safetensors")
    assert set(cs.inspect("x.safetensors").tensors) == state.keys()


def test_experts_that_only_a_shape_states_are_not_made() -> None:
    storage = Storage("x", 0, 64)
    scales = {f"{n}.experts.down_proj_scale_inv": TensorInfo("float32", (1 << 40, 1, 1), storage) for n in range(9)}
    codes = {f"{n}.experts.0.down_proj.weight": TensorInfo("float8_e4m3fn", (4, 4), storage) for n in range(9)}
    assert apart({**scales, **codes})[0] == {**scales, **codes}


@pytest.mark.parametrize(("rows", "blocks", "single"), [(256, 4, True), (200, 4, False), (96, 2, False), (64, 4, True)])
def test_a_block_with_rows_of_gate_and_of_up_is_not_taken_apart(rows: int, blocks: int, single: bool) -> None:
    """Blocks of 128 rows: 200 rows of gate end in the middle of the second of the four blocks of 400 rows."""

    def info(dtype: str, shape: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(dtype, shape, Storage("f", 0, 4096, None, "x", False))

    tensors = {
        f"m.experts.{n}.{name}_proj.weight": info("float8_e4m3fn", (rows, 256))
        for n in (0, 1)
        for name in ("gate", "up")
    }
    found, joined = apart(tensors | {"m.experts.gate_up_proj_scale_inv": info("float32", (2, blocks, 2))})
    assert ("m.experts.0.gate_proj.weight_scale_inv" in found) is single
    assert bool(joined.unread) is not single
