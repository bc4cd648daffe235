"""Decoded weights that are too large or too small for a network are noted by every verb that decodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.decoders._scale_tests import rise_with_scales
from ckptsurgeon.tensors.odd_scales.notes import OddScales
from ckptsurgeon.tensors.odd_scales.shifted import OFF_BY_ONE
from ckptsurgeon.tensors.odd_scales.sizes import INVERSE, LARGE, OF_SIZES, SMALL
from ckptsurgeon.util.notes import is_serious

from ...helpers import coded_matrices
from ...helpers.coded_matrices import SETTINGS, save_model

Change = Callable[[torch.Tensor], torch.Tensor]
LAYERS = 5
SCHEMES = ("mxfp4", "int4-group128", "int8", "fp8-channel")


def inverse(one: torch.Tensor) -> torch.Tensor:
    return 254 - one if one.dtype == torch.uint8 else (1 / one.float()).to(one.dtype)


def squared(one: torch.Tensor) -> torch.Tensor:
    return one * 2 - 127 if one.dtype == torch.uint8 else (one.float() ** 2).to(one.dtype)


def model(scheme: str, name: str, change: Change = torch.clone, layers: int = LAYERS) -> str:
    """A folder with matrices, of which the scales of the first ``layers`` are changed."""
    draw = torch.Generator().manual_seed(0)
    Path("plain").mkdir(exist_ok=True)
    Path("plain/config.json").write_text("{}")
    state = {f"{i}.weight": torch.randn(256, 256, generator=draw) / 50 for i in range(LAYERS)}
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), name)
    state = load_file(f"{name}/model.safetensors")
    for key in state:
        if key.endswith("weight_scale") and int(key.split(".")[0]) < layers:
            state[key] = change(state[key])
    save_file(state, f"{name}/model.safetensors")
    return name


def notes(path: str, size: str, dtype: str = "float32") -> list[str]:
    told = cs.apply(cs.convert(path, dequantize=True, dtype=dtype), "out.safetensors", force=True).notes
    return [one for one in told if OF_SIZES[size] in one]


@pytest.mark.costly
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inverse_and_squared_scales_are_noted(scheme: str) -> None:
    usual = model(scheme, "usual")
    assert not notes(usual, LARGE)
    assert not notes(usual, SMALL)
    (said,) = notes(model(scheme, "squared", squared), SMALL)
    assert said.startswith("squared: 5 of 5 decoded matrices make outputs less than 0.02 times as large")
    if scheme in ("mxfp4", "int4-group128"):  # those of 8 bits make weights above 10,000, which another note says
        assert notes(model(scheme, "inverse", inverse), LARGE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_looked_up_count_in_every_dtype(dtype: str) -> None:
    """Each matrix has a single scale, so that the products of codes and scale are looked up in a table."""
    draw, state = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for i in range(LAYERS):
        state[f"{i}.weight"] = (torch.randn(256, 256, generator=draw) * 20).to(torch.float8_e4m3fn)
        state[f"{i}.weight_scale"] = torch.tensor(2.0)
    save_file(state, "fp8.safetensors")
    assert notes("fp8.safetensors", LARGE, dtype=dtype)


@pytest.mark.parametrize(("layers", "is_noted"), [(2, False), (3, True)])
def test_most_matrices_have_to_be_too_large(layers: int, is_noted: bool) -> None:
    assert bool(notes(model("int4-group128", "odd", inverse, layers), LARGE)) is is_noted


@pytest.mark.long
def test_every_verb_that_decodes_notes_it() -> None:
    odd, usual = model("int4-group128", "odd", inverse), model("int4-group128", "usual")
    fresh = {f"{i}.weight": torch.zeros(256, 256) for i in range(LAYERS)}
    save_file(fresh, "fresh.safetensors")
    told = {
        "average": cs.apply(cs.average([usual, odd]), "average.safetensors").notes,
        "merge": cs.apply(cs.merge([usual, odd], method="linear", weights=[0.5, 0.5]), "merge.safetensors").notes,
        "transplant": cs.apply(
            cs.transplant(odd, "fresh.safetensors", encoding="dequantize"), "transplant.safetensors"
        ).notes,
        "lora extract": cs.apply(cs.lora_extract(usual, odd, rank=4), "adapter").notes,
        "diff": cs.diff(usual, odd, values=True).notes,
        "inspect": cs.inspect(odd, stats=True).notes,
        "shards": cs.apply(cs.convert(odd, dequantize=True), "shards", max_shard_size="300KB").notes,
    }
    for verb, said in told.items():
        assert len([one for one in said if OF_SIZES[LARGE] in one and one.startswith("odd")]) == 1, verb
        assert not [one for one in said if OF_SIZES[LARGE] in one and one.startswith("usual")], verb


NARROW = (128, 192)


def narrow(method: str, change: Change = torch.clone, factor: float = 1.0, clip: float = torch.inf) -> Path:
    """Five matrices whose rows have different sizes, as bitsandbytes stores them: their scales are changed."""
    draw, coded = torch.Generator().manual_seed(0), {}
    for number in range(LAYERS):
        rows = torch.exp(torch.randn(NARROW[0], 1, generator=draw) / 4)
        weight = rows * torch.randn(NARROW, generator=draw) / NARROW[1] ** 0.5
        parts = getattr(coded_matrices, method)(factor * weight.clamp(-clip, clip))
        coded[f"layers.{number}.up_proj"] = {
            end: change(one) if end in (".SCB", ".weight.absmax") else one for end, one in parts.items()
        }
    return save_model(Path(method), SETTINGS[method], coded)


def warned(path: Path) -> bool:
    return bool(cs.check(path, skip=["model-card", "class-tensors"]).row("weight-size").found)


@pytest.mark.costly
@pytest.mark.parametrize("method", ["nf4", "llm_int8"])
def test_inverse_scales_of_narrow_models_are_noted(method: str) -> None:
    """Inverse scales of bitsandbytes, whose codes are below 1, make weights that are only 20 to 50 times too large."""
    path = narrow(method, inverse)
    told = cs.apply(cs.convert(path, dequantize=True), "out.safetensors").notes
    (said,) = (one for one in told if "decoded matrices" in one)
    assert said.startswith(f"{path}: 5 of 5 decoded matrices {OF_SIZES[INVERSE]}: the scales may be inverse")
    assert said in cs.inspect(path, stats=True).notes
    assert said in cs.apply(cs.average([path, path], encoding="dequantize"), "average.safetensors").notes
    assert warned(path)


@pytest.mark.costly
@pytest.mark.parametrize("method", ["nf4", "llm_int8", "gptq", "auto_round", "awq", "mlx"])
@pytest.mark.parametrize(("factor", "clip"), [(1.0, torch.inf), (20.0, torch.inf), (25.0, 0.08)])
def test_large_weights_with_their_own_scales_are_not(method: str, factor: float, clip: float) -> None:
    """Codes are smaller where scales are larger, except for clipped weights."""
    path = narrow(method, factor=factor, clip=clip)
    told = cs.apply(cs.convert(path, dequantize=True), "out.safetensors").notes
    assert not [one for one in told if "decoded matrices" in one]
    assert not warned(path)


@pytest.mark.long
def test_the_real_network_has_smaller_codes_where_scales_are_larger(minilm: Path) -> None:
    """In each of its matrices, also if these are large; so inverse scales are found."""
    for key, weight in load_file(minilm / "model.safetensors").items():
        if weight.dim() == 2 and ".layer." in key:
            for parts in (coded_matrices.llm_int8(weight), coded_matrices.nf4(weight)):
                scale, codes = parted(parts)
                assert not rise_with_scales((scale * codes).numpy(), codes.numpy()), key
                found = rise_with_scales((codes / scale).numpy(), codes.numpy())
                assert found or "attention.output" in key, key


def parted(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales, and the codes as numbers."""
    if ".SCB" in parts:
        return parts[".SCB"][:, None], parts[".weight"].float()
    pairs = torch.cat([parts[".weight"] >> 4, parts[".weight"] & 15], 1).long()
    return parts[".weight.absmax"][:, None], parts[".weight.quant_map"][pairs].reshape(-1, 64)


UNSET = "1 decoded matrix is at least 32 times as large as that of other layers"


def of_layers(scheme: str, end: str, odd: dict[int, float], layers: int = 3) -> Path:
    """A quantised folder; ``odd`` has the numbers that replace all scales of some layers."""
    draw = torch.Generator().manual_seed(0)
    Path("plain").mkdir(exist_ok=True)
    Path("plain/config.json").write_text("{}")
    state = {f"layers.{i}.up_proj.weight": torch.randn(256, 256, generator=draw) / 50 for i in range(layers)}
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "odd", force=True)
    state = load_file("odd/model.safetensors")
    for layer, number in odd.items():
        key = f"layers.{layer}.up_proj.{end}"
        state[key] = torch.full_like(state[key], number)
    save_file(state, "odd/model.safetensors", {"format": "pt"})
    return Path("odd")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("scheme", "end"), [("nvfp4", "weight_global_scale"), ("fp8-block", "weight_scale_inv"), ("fp8-channel", "weight_scale")]
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_matrix_that_two_other_layers_contradict_is_noted(scheme: str, end: str, dtype: str) -> None:
    def noted() -> list[str]:
        told = cs.apply(cs.convert("odd", dequantize=True, dtype=dtype), "out.safetensors", force=True).notes
        return [one for one in told if "decoded matri" in one]

    of_layers(scheme, end, {})
    assert not noted()
    of_layers(scheme, end, {1: 1})
    assert noted() == [
        f"odd: {UNSET}: the scales may be those of other codes, or may never have been set: layers.1.up_proj.weight"
    ]
    averaged = cs.average(["odd", "odd"], encoding="dequantize")
    assert any(UNSET in one for one in cs.apply(averaged, "mean.safetensors", force=True).notes)
    of_layers(scheme, end, {1: 1, 2: 1})
    (said,) = noted()  # which layer is right shows in how large outputs are
    assert said.startswith("odd: 2 decoded matrices are at least 32 times as large as those of other layers")
    assert said.endswith(": layers.1.up_proj.weight, layers.2.up_proj.weight")


@pytest.mark.parametrize(("factor", "said"), [(448, "is at least 32 times"), (1 / 448, "is at most 1/32"), (16, "")])
@pytest.mark.parametrize("name", ["up_proj", "experts.0.up_proj"])
def test_half_of_the_layers_may_be_wrong(factor: float, said: str, name: str) -> None:
    """A folder of two shards may have another model's scales in one of them, and half of the layers in each."""
    draw = torch.Generator().manual_seed(0)
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    state = {f"layers.{i}.{name}.weight": torch.randn(256, 256, generator=draw) / 50 for i in range(6)}
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize="fp8-block"), "odd")
    state = load_file("odd/model.safetensors")
    for i in (3, 4, 5):
        state[f"layers.{i}.{name}.weight_scale_inv"] *= factor
    save_file(state, "odd/model.safetensors", {"format": "pt"})
    told = cs.apply(cs.convert("odd", dequantize=True), "out.safetensors").notes
    found = [one for one in told if "of other layers" in one]
    if not said or (factor < 1 and "experts" in name):  # an expert that is never chosen shrinks
        assert not found
    else:
        (one,) = found
        assert one.startswith(
            f"odd: 3 decoded matrices {said.replace('is', 'are', 1)} as large as those of other layers"
        )
        assert one.endswith(f"layers.3.{name}.weight, layers.4.{name}.weight, layers.5.{name}.weight")


@pytest.mark.parametrize(("factor", "is_noted"), [(32.1, True), (31.9, False), (31.0, False), (1 / 31.9, False)])
def test_what_is_said_to_be_32_times_as_large_is(factor: float, is_noted: bool) -> None:
    seen = OddScales()
    for layer in range(4):
        size = 0.3 if factor > 1 else 0.019 / factor
        seen.add_size(f"layers.{layer}.up.weight", size * (factor if layer > 1 else 1), lambda: False)
    assert any("at least 32 times" in one or "at most 1/32" in one for one in seen.notes("m")) is is_noted


@pytest.mark.parametrize(("factor", "is_noted"), [(4.01, True), (3.99, False)])
def test_a_group_of_layers_is_compared_with_the_other_in_every_role(factor: float, is_noted: bool) -> None:
    """Roles may differ in size by more than the groups do: a small role of one is below a large role of the other."""
    seen = OddScales()
    for layer in range(4):
        for role, size in (("up", 0.3), ("down", 1.0), ("q", 2.0)):
            seen.add_size(f"layers.{layer}.{role}.weight", size * (factor if layer > 1 else 1), lambda: False)
            seen.add_size(f"layers.{layer}.{role}.weight", 0.01, lambda: False)  # another part of the matrix
    said = (
        "m: 6 of 12 decoded matrices, those of every kind in some layers, are at least 4 times as large as those of the "
        "other layers: the scales of these layers, or of the others, may be those of another model: "
        "layers.2.down.weight, layers.2.q.weight, layers.2.up.weight, and 3 more (--json lists all)"
    )
    assert list(seen.notes("m")) == [said] * is_noted


def test_layers_that_are_larger_in_some_roles_only_are_no_other_group() -> None:
    seen = OddScales()
    for layer in range(4):
        for role, factor in (("up", 8), ("down", 8), ("gate", 8), ("q", 1)):
            seen.add_size(f"layers.{layer}.{role}.weight", 0.3 * (factor if layer > 1 else 1), lambda: False)
    assert not list(seen.notes("m"))


@pytest.mark.parametrize(("version", "is_noted"), [("gptq", False), ("gptq_v2", True)])
def test_zero_points_that_are_off_by_one_are_noted(version: str, is_noted: bool) -> None:
    """The same codes under the other ``checkpoint_format`` are shifted by one step in all layers."""
    coded = {f"layers.{number}.up_proj": coded_matrices.gptq(torch.randn(128, 256) / 50) for number in range(LAYERS)}
    path = save_model(Path("m"), {**SETTINGS["gptq"], "checkpoint_format": version}, coded)
    told = cs.apply(cs.convert(path, dequantize=True), "out.safetensors").notes
    said = f"m: 5 of 5 decoded matrices have {OFF_BY_ONE}: layers.0.up_proj.weight, layers.1.up_proj.weight"
    assert any(one.startswith(said) and is_serious(one) for one in told) is is_noted
    found = cs.check(path, skip=["model-card", "class-tensors"]).row("weight-size").found
    assert any(OFF_BY_ONE in one.what and one.status.name == "FAIL" for one in found) is is_noted
