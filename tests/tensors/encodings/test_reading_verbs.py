"""What only looks at quantised checkpoints: it names the method, counts what is meant, and never computes on codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.bitsandbytes_values import VALUES
from ckptsurgeon.util.text import natural_key

from ...analysis.page.made import data_of
from ...helpers.depth import each_in_turn
from ...helpers.zoo import BY_NAME, IN, OUT, ZOO, Quantised

Run = Callable[..., Any]
each_encoding = each_in_turn("model", ZOO)
PLAIN_PARAMETERS = 10 * IN + IN
WITHOUT_FLOATS = (
    "mxfp8",
    "mxfp4",
    "mxfp4-quark",
    "fp4-deepseek-v4",
    "fp4-experts",
    "spqr",
    "unknown-alone",
    "bytes-of-llama.cpp",
    "sparse",
)


@each_encoding
def test_inspect_names_the_method_and_counts_true_parameters(model: Quantised, tmp_path: Path, ckpt: Run) -> None:
    folder = str(model.folder(tmp_path / "m"))
    found = json.loads(ckpt("inspect", folder, "--json").out)
    stored = PLAIN_PARAMETERS + sum(t.numel() for t in model.biases().values())
    if model.parameters is None:
        assert found["totals"]["parameters"] is None
        least = sum(one["parameters_at_least"] for one in found["quantised"])
        assert 0 < least <= OUT * IN * len(model.layers)
    else:
        least = model.parameters * len(model.layers)
        assert found["totals"]["parameters"] == stored + least
    assert found["totals"]["parameters_at_least"] == stored + least
    assert {one["method"] for one in found["quantised"]} == {model.method}
    assert {part for one in found["quantised"] for part in one["parts"]} <= {one["key"] for one in found["tensors"]}
    said = ckpt("inspect", folder).out
    assert model.method in " ".join(said.split())
    assert ("at least " in said) == (model.parameters is None)


@pytest.mark.parametrize("name", ["nvfp4-packed", "mxfp4-quark", "fp8-block"])
def test_inspect_shows_the_shape_of_a_weight(name: str, tmp_path: Path, ckpt: Run) -> None:
    """Also where the encoding has the name of a type of blocks, such as mxfp4, whose shape would be in bytes."""
    said = ckpt("inspect", str(BY_NAME[name].folder(tmp_path / "m"))).out
    assert f"({OUT}, {IN}) [" in " ".join(said.split()), said


@each_encoding
def test_stats_have_no_figures_of_codes(model: Quantised, tmp_path: Path, ckpt: Run) -> None:
    folder = model.folder(tmp_path / "m")
    found = cs.inspect(folder, stats=True)
    unmeasured = not_numbers(model, folder)
    assert {key for key, figures in (found.stats or {}).items() if figures is None} == unmeasured
    assert found.summary is not None
    assert set(found.summary.unsound) <= {*found.decoded, *found.damaged}  # random exponents may be too large, or NaN
    done = ckpt("inspect", str(folder), "--stats")
    assert done.code == bool(found.summary.unsound)
    assert f"{len(unmeasured)} not measured" in done.out


@each_encoding
def test_stats_of_codes_are_those_of_the_weights_that_they_stand_for(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    found = cs.inspect(folder, stats=True)
    names = {one.name for one in found.codes.tensors}
    assert found.decoded.keys() | found.undecoded.keys() == names
    assert not found.decoded.keys() & found.undecoded.keys()
    if not found.undecoded:
        cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "plain")
        plain = cs.inspect(tmp_path / "plain", stats=True).stats or {}
        assert {name: plain[name] for name in names} == dict(found.decoded)


def test_stats_that_cannot_be_taken_have_a_reason(tmp_path: Path, ckpt: Run) -> None:
    folder = str(BY_NAME["hqq"].folder(tmp_path / "m"))
    rows = json.loads(ckpt("inspect", folder, "--stats", "--json").out)["quantised"]
    assert all(row["stats"] is None and "no decoder knows HQQ" in row["undecoded"] for row in rows)
    assert "quantised: HQQ" in ckpt("inspect", folder, "--stats").out


EXPONENTS = {
    "mxfp8": {"a.weight": torch.ones(4, 64).to(torch.float8_e4m3fn), "a.weight_scale": torch.full((4, 2), 127)},
    "mxfp4": {"a.weight_packed": torch.ones(4, 32).byte(), "a.weight_scale": torch.full((4, 2), 127)},
    "mxfp4 of gpt-oss": {"a_blocks": torch.ones(2, 4, 2, 16).byte(), "a_scales": torch.full((2, 4, 2), 127)},
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_an_exponent_that_is_nan_is_found(name: str, ckpt: Run) -> None:
    """No figure counts it: bytes of exponents are no numbers, and nothing decodes the weight."""
    codes, scales = EXPONENTS[name]
    state = {codes: EXPONENTS[name][codes], scales: EXPONENTS[name][scales].byte(), "norm.weight": torch.ones(4)}
    save_file(state, "sound.safetensors")
    state[scales].view(-1)[0] = 255
    save_file(state, "x.safetensors")
    assert ckpt("inspect", "sound.safetensors", "--stats").code == 0
    done = ckpt("inspect", "x.safetensors", "--stats")
    weight = codes.removesuffix("_packed").removesuffix("_blocks")
    assert done.code == 1
    assert " ".join(done.out.split()).endswith(f"0 Inf, 0 zeros, 2 not measured not decoded: {weight}")
    assert "not decoded: x.safetensors: a scale" in " ".join(done.out.split())
    assert ckpt("check", "x.safetensors").code == 1


def test_the_totals_count_what_codes_decode_to(tmp_path: Path, ckpt: Run) -> None:
    codes = torch.zeros(4, 64).to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[0, :3] = torch.tensor([0x7F, 0x38, 0x38], dtype=torch.uint8)  # NaN, 1, 1
    save_file({"a.weight": codes, "a.weight_scale": torch.ones(()), "b": torch.ones(2)}, "x.safetensors")
    done = ckpt("inspect", "x.safetensors", "--stats")
    said = "2 tensors and 1 decoded weight of 259 elements, 1 NaN, 0 Inf, 253 zeros, 1 not measured in a.weight"
    assert (done.code, " ".join(done.out.split()).endswith(said)) == (1, True)


def test_a_weight_that_is_infinite_is_found(tmp_path: Path, ckpt: Run) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    tensors = BY_NAME["fp8-block"].tensors()
    tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"][0, 0] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = ckpt("inspect", str(folder), "--stats", "--json")
    assert done.code == 1
    assert json.loads(done.out)["summary"]["unsound"] == ["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(("name", "bits"), [("fp8-block", 8 + 8 * 16 / (OUT * IN)), ("gptq", 5.125), ("mlx", None)])
def test_inspect_shows_the_logical_network(
    name: str, bits: float | None, tmp_path: Path, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # so that no text is wrapped
    folder = str(BY_NAME[name].folder(tmp_path / "m"))
    rows = json.loads(ckpt("inspect", folder, "--json").out)["quantised"]
    stored = cs.open_checkpoint(folder)
    for row in rows:
        assert row["bits_per_weight"] == 8 * sum(stored[key].nbytes for key in row["parts"]) / (OUT * IN)
        assert bits in (None, row["bits_per_weight"])
    said = " ".join(ckpt("inspect", folder).out.split())
    assert f"{{k_proj,q_proj}}.weight ({OUT}, {IN}) [{rows[0]['bits_per_weight']:.3g} bits per weight]" in said
    parts = {part.rpartition(".")[2] for row in rows for part in row["parts"]} - {"weight"}
    assert parts
    assert parts.isdisjoint(said.split())
    verbose = ckpt("inspect", folder, "-v").out
    assert all(part in verbose for row in rows for part in row["parts"])


def not_numbers(model: Quantised, folder: Path) -> set[str]:
    """The keys of codes, and of the integers that decode them."""
    coded, tensors = cs.open_checkpoint(folder).codes, model.tensors()
    found = {key for one in coded.tensors for key in (one.codes, *one.more_codes)}
    return found | {key for key in coded.by_key if not tensors[key].is_floating_point()}


@each_encoding
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_found(model: Quantised, bad: float, tmp_path: Path, ckpt: Run) -> None:
    folder = model.folder(tmp_path / "m")
    tensors, unmeasured = model.tensors(), not_numbers(model, folder)
    coded = cs.open_checkpoint(folder).codes.by_key
    scales = [key for key in coded if key not in unmeasured and tensors[key].element_size() > 1]
    for key in scales[:1]:
        tensors[key].view(-1)[0] = bad
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        done = ckpt("inspect", str(folder), "--stats", "--json")
        assert done.code == 1
        assert json.loads(done.out)["summary"]["unsound"] == [key]
    assert scales or model.name in WITHOUT_FLOATS


@pytest.mark.costly
@each_encoding
def test_diff_compares_codes_byte_for_byte(model: Quantised, tmp_path: Path, ckpt: Run) -> None:
    first, second = str(model.folder(tmp_path / "a")), str(model.folder(tmp_path / "b", 1))
    assert ckpt("diff", first, str(model.folder(tmp_path / "c")), "--values").code == 0
    found = json.loads(ckpt("diff", first, second, "--values", "--json").out)
    coded = cs.open_checkpoint(first).codes.by_key
    changed = {one["key"]: one for one in found["changed"]}
    assert changed.keys() & coded.keys()
    loose = json.loads(ckpt("diff", first, second, "--values", "--rtol", "1e9", "--json").out)
    still, weights = {one["key"] for one in loose["changed"]}, {one["key"] for one in found["decoded"]}
    codes = changed.keys() & not_numbers(model, Path(first))
    assert {key for key in codes if coded[key].name not in weights} <= still  # a tolerance is of weights, not of codes
    within = {one["key"] for one in loose["close"]}
    assert all((coded[key].name in within) is (key in within) for key in codes - still)
    unmeasured = not_numbers(model, Path(first))
    assert all(one == {"key": key, "codes": model.method} for key, one in changed.items() if key in unmeasured)
    assert all("codes" not in one for key, one in changed.items() if key not in unmeasured)


@each_encoding
def test_diff_measures_scales(model: Quantised, tmp_path: Path, ckpt: Run) -> None:
    first, second = model.folder(tmp_path / "a"), model.folder(tmp_path / "b")
    tensors, unmeasured = model.tensors(), not_numbers(model, first)
    coded = cs.open_checkpoint(first).codes.by_key
    for key in [key for key in coded if key not in unmeasured and tensors[key].element_size() > 1][:1]:
        tensors[key].view(-1)[0] = float("nan")
        save_file(tensors, second / "model.safetensors", metadata={"format": "pt"})
        found = json.loads(ckpt("diff", str(first), str(second), "--values", "--json").out)
        assert [(one["key"], one["nan"]) for one in found["changed"]] == [(key, 1)]


@each_encoding
def test_a_page_counts_true_parameters_and_draws_no_codes(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.view(folder, output=tmp_path / "page.html", stats=True)
    page = (tmp_path / "page.html").read_text()
    total, counted = cs.inspect(folder).parameters_at_least, str(model.parameters is not None).lower()
    assert f'"parameters":{total},"counted":{counted}' in page.replace(" ", "")


@pytest.mark.parametrize("name", ["fp8-block", "gptq"])
def test_a_page_draws_the_weights_in_the_rows_of_their_codes(name: str, tmp_path: Path) -> None:
    folder = BY_NAME[name].folder(tmp_path / "m")
    data = data_of(cs.view(folder, stats=True))
    keys = sorted(cs.open_checkpoint(folder), key=natural_key)
    found = cs.inspect(folder, stats=True)
    for coded in found.codes.tensors:
        row = keys.index(coded.codes)
        assert data["figures"]["max"][row] == pytest.approx(found.decoded[coded.name].max, rel=1e-8)
        assert len(data["figures"]["histogram"][row]) == 32


def test_parts_without_their_codes_are_shown_as_they_are_stored(tmp_path: Path, ckpt: Run) -> None:
    folder = str(BY_NAME["gptq"].folder(tmp_path / "m"))
    said = ckpt("inspect", folder, "--include", "**.qweight").out
    assert "qweight" in said
    assert "bits per weight" not in said


def test_four_bit_weights_have_the_shapes_of_their_quant_states(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of these two weights are alike; the shape is the value of a small tensor."""
    monkeypatch.setenv("COLUMNS", "160")
    state: dict[str, torch.Tensor] = {}
    for name, shape in (("up", [128, 64]), ("down", [64, 128]), ("odd", [64, 64])):
        said = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape}).ljust(90)
        state |= {
            f"{name}.weight": torch.zeros(4096, 1, dtype=torch.uint8), f"{name}.weight.absmax": torch.ones(128),
            f"{name}.weight.quant_map": torch.tensor(VALUES["nf4"]),
            f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(said.encode()), dtype=torch.uint8),
        }  # fmt: skip
    save_file(state, "x.safetensors")
    rows = {row["key"]: row["shape"] for row in json.loads(ckpt("inspect", "x.safetensors", "--json").out)["quantised"]}
    assert rows == {"up.weight": [128, 64], "down.weight": [64, 128], "odd.weight": None}  # 4,096 values do not fit
    page = " ".join(ckpt("inspect", "x.safetensors").out.split())
    assert "up.weight (128, 64)" in page
    assert "down.weight (64, 128)" in page
    assert "(4096, 1)" in page


def test_what_decodes_codes_under_their_own_name_is_named_beside_it(tmp_path: Path, ckpt: Run) -> None:
    page = ckpt("inspect", str(BY_NAME["bnb-nf4"].folder(tmp_path / "m"))).out
    for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state"):
        assert part in page
    assert not any(line.split()[:2] == ["weight", "-"] for line in page.splitlines())
