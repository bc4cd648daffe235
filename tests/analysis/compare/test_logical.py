"""Values of quantised tensors are compared by logical name, with a plain model or with another encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.quantised import Quantised
from ...helpers.zoo import BY_NAME
from ...tensors.decoders.test_parts import MODELS

QUERY, KEY = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


def plain(folder: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """The weights that a quantised model stands for, which are also written beside it."""
    cs.apply(cs.convert(folder, dequantize=True, dtype=dtype), f"{folder}-plain", force=True)
    return load_file(f"{folder}-plain/model.safetensors")


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    return BY_NAME["fp8-block"].folder(tmp_path / "fp8")


@pytest.mark.costly
@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_a_model_has_the_values_of_its_own_weights(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    weights = plain(folder)
    found = cs.diff(folder, f"{folder}-plain", values=True)
    names = {one.name for one in cs.open_checkpoint(folder).codes.tensors}
    assert {pair.key for pair in found.decoded} == names
    assert all(pair.encodings == (model.method, "float32") for pair in found.decoded)
    assert all(pair.numbers is not None and pair.numbers.differing == 0 for pair in found.decoded)
    assert not [*found.added, *found.removed, *found.changed, *found.reshaped]
    assert len(found.same) + len(found.retyped) == len(weights) - len(names)


def test_the_error_of_each_tensor_is_that_of_its_weight(fp8: Path, tmp_path: Path) -> None:
    exact, rounded = plain(fp8), plain(fp8, "bfloat16")
    (pair,) = (one for one in cs.diff(fp8, f"{fp8}-plain", values=True).decoded if one.key == QUERY)
    gap = (exact[QUERY] - rounded[QUERY].float()).double()
    assert pair.numbers is not None
    assert pair.numbers.max_abs == gap.abs().max().item()
    assert pair.numbers.relative == pytest.approx(float(gap.norm() / exact[QUERY].double().norm()), rel=1e-12)


@pytest.mark.long
def test_two_encodings_of_a_model_are_compared_by_logical_name(fp8: Path, tmp_path: Path) -> None:
    gptq = BY_NAME["gptq"].folder(tmp_path / "gptq")
    found = cs.diff(fp8, gptq, values=True)
    assert [(one.key, one.encodings) for one in found.decoded] == [
        (KEY, ("fp8 with block scales", "GPTQ, 4 bits")), (QUERY, ("fp8 with block scales", "GPTQ, 4 bits")),
    ]  # fmt: skip
    assert not [*found.added, *found.removed, *found.notes]
    a, b = plain(fp8), plain(gptq)
    numbers = found.decoded[1].numbers
    assert numbers is not None
    assert numbers.max_abs == (a[QUERY].double() - b[QUERY].double()).abs().max().item()


def test_codes_that_changed_have_the_figures_of_their_weights(fp8: Path, tmp_path: Path) -> None:
    other = BY_NAME["fp8-block"].folder(tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state[f"{QUERY}_scale_inv"] *= 2
    save_file(state, other / "model.safetensors")
    found = cs.diff(fp8, other, values=True)
    assert [pair.key for pair in found.changed] == [f"{QUERY}_scale_inv"]
    assert [(pair.key, pair.numbers and pair.numbers.relative) for pair in found.decoded] == [(QUERY, 1.0)]


@pytest.mark.long
def test_a_tolerance_is_of_the_weights(fp8: Path, tmp_path: Path) -> None:
    other = BY_NAME["fp8-block"].folder(tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state[f"{QUERY}_scale_inv"] *= 1.001
    save_file(state, other / "model.safetensors")
    plain(fp8, "bfloat16")
    for second in (other, f"{fp8}-plain"):
        assert cs.diff(fp8, second, values=True, rtol=1e-5).differs
        found = cs.diff(fp8, second, values=True, rtol=0.01)
        assert not [*found.changed, *found.decoded]
        assert QUERY in {pair.key for pair in found.close}
    assert not cs.diff(fp8, other, values=True, rtol=0.01).differs


def test_headers_alone_are_compared_as_they_are_stored(fp8: Path) -> None:
    plain(fp8)
    found = cs.diff(fp8, f"{fp8}-plain")
    assert not found.decoded
    assert {f"{QUERY}_scale_inv", f"{KEY}_scale_inv"} == set(found.removed)


@pytest.mark.long
def test_codes_that_settings_decode_differently_are_compared_by_value(tmp_path: Path) -> None:
    first, second = (BY_NAME["gptq"].folder(tmp_path / name) for name in "ab")
    config = json.loads((second / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (second / "config.json").write_text(json.dumps(config))
    found = cs.diff(first, second, values=True)
    assert [pair.key for pair in found.decoded] == [KEY, QUERY]
    assert any(
        "quantised codes mean different numbers in the two checkpoints: checkpoint_format" in note
        for note in found.notes
    )
    a, b = plain(first), plain(second)
    numbers = found.decoded[1].numbers
    assert numbers is not None
    assert numbers.max_abs == (a[QUERY].double() - b[QUERY].double()).abs().max().item() > 0


def test_what_no_decoder_knows_is_not_compared_with_a_reason(fp8: Path, tmp_path: Path, ckpt: Any) -> None:
    hqq = BY_NAME["hqq"].folder(tmp_path / "hqq")
    found = cs.diff(hqq, fp8, values=True)
    assert found.not_compared.keys() == {QUERY, KEY}
    assert "no decoder knows HQQ" in found.not_compared[QUERY]
    done = ckpt("diff", "hqq", "fp8", "--values")
    assert done.code == 1
    assert "no decoder knows HQQ" in " ".join(done.out.split())


def test_a_scale_that_is_no_number_is_a_reason_too(fp8: Path) -> None:
    plain(fp8)
    state = load_file(fp8 / "model.safetensors")
    state[f"{QUERY}_scale_inv"][0, 0] = float("nan")
    save_file(state, fp8 / "model.safetensors")
    found = cs.diff(fp8, f"{fp8}-plain", values=True)
    assert [pair.key for pair in found.decoded] == [KEY]
    assert "is NaN or infinite" in found.not_compared[QUERY]


@pytest.mark.long
def test_patterns_speak_of_logical_names(tmp_path: Path) -> None:
    gptq = BY_NAME["gptq"].folder(tmp_path / "gptq")
    plain(gptq)
    found = cs.diff(gptq, f"{gptq}-plain", values=True, include=[QUERY])
    assert [pair.key for pair in found.decoded] == [QUERY]
    hqq = BY_NAME["hqq"].folder(tmp_path / "hqq")
    assert cs.diff(hqq, gptq, values=True, include=[QUERY]).not_compared.keys() == {QUERY}


def test_another_shape_is_said_of_the_weight(tmp_path: Path) -> None:
    gptq = BY_NAME["gptq"].folder(tmp_path / "gptq")
    state = {key: tensor[:32].contiguous() if key == QUERY else tensor for key, tensor in plain(gptq).items()}
    save_file(state, "other.safetensors")
    found = cs.diff(gptq, "other.safetensors", values=True)
    assert [(pair.key, pair.first.shape, pair.second.shape) for pair in found.reshaped] == [
        (QUERY, (64, 128), (32, 128))
    ]
    assert [pair.key for pair in found.decoded] == [KEY]


@pytest.mark.long
def test_the_answer_names_both_encodings(fp8: Path, ckpt: Any) -> None:
    plain(fp8, "bfloat16")
    done = ckpt("diff", "fp8", "fp8-plain", "--values")
    assert done.code == 1
    assert "fp8 with block scales to bfloat16" in " ".join(done.out.split())
    assert "2 tensors identical byte for byte, 2 decoded" in done.out
    (row, _) = json.loads(ckpt("diff", "fp8", "fp8-plain", "--values", "--json").out)["decoded"]
    assert (row["key"], row["from"], row["to"]) == (KEY, "fp8 with block scales", "bfloat16")
    assert 0 < row["relative"] < 0.01
    layers = next(
        line
        for line in ckpt("diff", "fp8", "fp8-plain", "--values", "--depth", "2").out.splitlines()
        if "layers" in line
    )
    assert layers.split()[:3] == ["model.layers", "-", "2"]
    assert "max" in layers
