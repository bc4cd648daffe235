"""A part of a decoded weight is that part of the whole, whatever the part; and what cannot be decoded is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import operate
from ckptsurgeon.engine.compute.reading import read_part

from ...helpers.quantised import IN, LAYERS, OUT, Quantised, eight_bits, fp8, scales, words
from ...helpers.zoo import BY_NAME

DECODED = (
    "fp8-block", "fp8-experts", "fp8-tensor", "fp8-channel", "fp8-comfy", "fp8-descale", "nvfp4-packed", "nvfp4-modelopt", "int8",
    "int4-packed", "gptq", "gptq-3bit", "awq", "bnb-int8", "mlx", "fp4-deepseek-v4", "fp4-experts", "int4-second-group",
    "mlx-other-bits", "mlx-other-groups", "gptq-plain", "fp8-tensorrt", "quanto",
)  # fmt: skip


def exponents_of_one(name: str) -> Quantised:
    """A model of the zoo whose scales are exponents, none of which is that of NaN."""
    one = BY_NAME[name]

    def store(generator: torch.Generator) -> dict[str, torch.Tensor]:
        made = one.store(generator)
        return {end: (tensor % 64 + 96 if "scale" in end else tensor) for end, tensor in made.items()}

    return replace(one, store=store)


MODELS = [*(BY_NAME[name] for name in DECODED), *map(exponents_of_one, ("mxfp4", "mxfp8", "mxfp4-quark"))]


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_any_part_is_that_of_the_whole(model: Quantised, tmp_path: Path) -> None:
    checkpoint = cs.open_checkpoint(model.folder(tmp_path / "m"))
    made = operate([checkpoint], [{"dequantize": "**"}])[0].checkpoint
    key = model.layers[0] if "experts" in model.layers[0] else f"{model.layers[0]}.weight"
    info = made[key]
    whole = read_part(checkpoint, info, tuple((0, size) for size in info.shape))
    assert whole.shape == info.shape
    chance = random.Random(0)
    for _ in range(20):
        box = tuple(tuple(sorted(chance.sample(range(size + 1), 2))) for size in info.shape)
        part = read_part(checkpoint, info, box)  # type: ignore[arg-type]
        assert (part == whole[tuple(slice(*span) for span in box)]).all(), box
    assert torch.equal(made.tensor(key), torch.from_numpy(whole))


@pytest.mark.costly
@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_convert_writes_the_weights_and_takes_the_settings_away(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    key = model.layers[0] if "experts" in model.layers[0] else f"{model.layers[0]}.weight"
    assert found[key].dtype == torch.bfloat16
    assert not [stored for stored in found if "scale" in stored or stored.endswith(("_blocks", "qweight", "packed"))]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert not cs.open_checkpoint(tmp_path / "out").codes
    assert cs.verify(tmp_path / "out").ok
    made = operate([cs.open_checkpoint(folder)], [{"dequantize": "**"}])[0].checkpoint
    assert torch.equal(found[key], made.tensor(key).bfloat16())


def refused(store: Callable[[torch.Generator], dict[str, torch.Tensor]], settings: dict[str, Any], path: Path) -> str:
    """What is said of a model that cannot be dequantised: exit 4, the tensor, why, and what to do."""
    with pytest.raises(cs.PlanError) as error:
        cs.convert(Quantised("x", "", store, settings).folder(path), dequantize=True)
    assert error.value.exit_code == 4
    assert "model.layers.0.self_attn" in error.value.message
    return error.value.message


def without(end: str, name: str = "nvfp4-packed") -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    """What a layer of a model of the zoo stores, without one of its parts."""
    return lambda g: {one: tensor for one, tensor in BY_NAME[name].store(g).items() if one != end}


ASYMMETRIC = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": False}}}}
NO_ZEROS: list[tuple[str, str, dict[str, Any]]] = [
    ("gptq", ".qzeros", {}), ("gptq", ".qzeros", {"sym": False}), ("awq", ".qzeros", {"zero_point": True}),
    ("int4-packed", ".weight_zero_point", ASYMMETRIC), ("int8", ".weight_zero_point", ASYMMETRIC),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "end", "more"),
    [("gptq", ".qzeros", {"sym": True}), ("awq", ".qzeros", {"zero_point": False}),
     ("int4-packed", ".weight_zero_point", {})],
)  # fmt: skip
def test_symmetric_codes_need_no_zero_points(name: str, end: str, more: dict[str, Any], tmp_path: Path) -> None:
    model = Quantised("x", "", without(end, name), BY_NAME[name].settings | more)
    receipt = cs.apply(cs.convert(model.folder(tmp_path / "m"), dequantize=True), tmp_path / "out")
    assert receipt.counts["derived"] == len(model.layers)


FP8 = {"quant_method": "fp8", "weight_block_size": [32, 64]}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def nf4(state: dict[str, Any], **parts: torch.Tensor | None) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    """What a layer of bitsandbytes' nf4 of 8 x 16 values stores, with other settings or ``parts``; None: no such part."""
    told = {"shape": [8, 16], "blocksize": 64, **state}
    of_state = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    found: dict[str, torch.Tensor | None] = {
        ".weight": torch.ones(64, 1, dtype=torch.uint8), ".weight.absmax": torch.ones(2),
        ".weight.quant_map": torch.ones(16), ".weight.quant_state.bitsandbytes__nf4": of_state,
        **{f".weight.{name}" if name else ".weight": part for name, part in parts.items()},
    }  # fmt: skip
    return lambda g: {end: tensor.clone() for end, tensor in found.items() if tensor is not None}


NESTED: dict[str, Any] = {"nested_blocksize": 256, "nested_offset": 0.5}
OF_NESTED: dict[str, Any] = {
    "absmax": torch.ones(2, dtype=torch.uint8), "nested_absmax": torch.ones(1), "nested_quant_map": torch.ones(256),
}  # fmt: skip
OF_NF4: list[tuple[Callable[[torch.Generator], dict[str, torch.Tensor]], str]] = [
    (nf4({"shape": "8"}), "the shape in the quant_state is '8', not a list of at most 8 positive whole numbers"),
    (nf4({"shape": [8, 0]}), "the shape in the quant_state is [8, 0], not a list"),
    (nf4({"blocksize": 0}), "the blocksize in the quant_state is 0, not a whole number from 1 to 9223372036854775807"),
    (nf4({"shape": [10**3999] * 3}), "which is too many values"),
    (nf4({"shape": [2**40] * 8}), "which is too many values"),
    (nf4({"blocksize": 10**3999}), "not a whole number from 1 to 9223372036854775807"),
    (nf4({**NESTED, "nested_blocksize": 10**3999}, **OF_NESTED), "not a whole number from 1 to 9223372036854775807"),
    (nf4({**NESTED, "nested_offset": 10**3999}, **OF_NESTED), "not a finite float32 value"),
    (nf4({**NESTED, "nested_offset": float("inf")}, **OF_NESTED), "is inf, not a finite float32 value"),
    (nf4({**NESTED, "nested_offset": float("nan")}, **OF_NESTED), "is nan, not a finite float32 value"),
    (nf4({"shape": [8, 8]}), "has the shape [8, 8], which needs 32 bytes of codes, but there are 64"),
    (nf4({"blocksize": 32}), "which needs 4 scales (one for 32 values), but the absmax has 2"),
    (nf4({}, quant_map=None), "the quant_map is missing"),
    (nf4({}, quant_map=torch.ones(8)), "the quant_map has the shape [8], not [16], one value for each code"),
    (nf4(NESTED, **{**OF_NESTED, "nested_quant_map": None}), "the nested_quant_map is missing"),
    (nf4(NESTED, **{**OF_NESTED, "nested_absmax": None}), "the nested_absmax is missing"),
    (nf4(NESTED, **{**OF_NESTED, "nested_absmax": torch.ones(2)}), "the nested_absmax has 2 scales, not 1, one for 256 of"),
    (nf4(NESTED, **{**OF_NESTED, "absmax": torch.ones(2)}), "the scales are quantised, but the absmax is float32"),
    (nf4({**NESTED, "nested_offset": None}, **OF_NESTED), "the nested_offset in the quant_state is None, not a finite float32 value"),
    (nf4({**NESTED, "nested_blocksize": 0}, **OF_NESTED), "the nested_blocksize in the quant_state is 0, not a whole"),
    (lambda g: {".weight": eight_bits(g, 8, 16, dtype=torch.int8), ".SCB": scales(g, 7)},
     "the SCB has the shape [7], not [8], one scale for each row"),
]  # fmt: skip


@pytest.mark.parametrize(("store", "why"), OF_NF4)
def test_each_fault_of_bitsandbytes_has_its_own_message(
    store: Callable[[torch.Generator], dict[str, torch.Tensor]], why: str, tmp_path: Path
) -> None:
    said = refused(store, BNB, tmp_path / "m")
    assert why in said
    assert len(said) < 1000  # a number of 4,000 digits is not printed


@pytest.mark.parametrize(("state", "parts"), [({}, {}), (NESTED, OF_NESTED)])
def test_what_fits_is_decoded(state: dict[str, Any], parts: dict[str, Any], tmp_path: Path) -> None:
    folder = Quantised("x", "", nf4(state, **parts), BNB).folder(tmp_path / "m")
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")
    assert (tmp_path / "out").exists()


def awq_gemv(g: torch.Generator) -> dict[str, torch.Tensor]:
    """What AWQ stores in its layout for matrix-vector products."""
    return {".qweight": torch.ones(64, 4, dtype=torch.int32), ".scales": torch.ones(64, 2).half()}


@pytest.mark.parametrize(
    ("store", "settings", "why"),
    [
        (BY_NAME["nvfp4-awq"].store, BY_NAME["nvfp4-awq"].settings, "inputs of the layer are scaled"),
        (lambda g: {**BY_NAME["int8"].store(g), ".comfy_quant": eight_bits(g, 9)}, {}, "ComfyUI's own"),
        (BY_NAME["hqq"].store, BY_NAME["hqq"].settings, "no decoder knows HQQ"),
        (without(".weight_global_scale"), BY_NAME["nvfp4-packed"].settings, "the weight_global_scale is missing"),
        (lambda g: {**BY_NAME["nvfp4-packed"].store(g), ".weight_global_scale": torch.ones(1, dtype=torch.int32)}, BY_NAME["nvfp4-packed"].settings, "accepts int32 as the dtype of the global scale"),
        (without(".weight.absmax", "bnb-nf4"), BY_NAME["bnb-nf4"].settings, "without which its codes cannot be decoded is missing"),
        (BY_NAME["bnb-nf4"].store, BY_NAME["bnb-nf4"].settings, "the quant_state is not a JSON object"),
        (lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale_inv": scales(g, 3, 2)}, FP8, "no block size in the settings fits"),
        (lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale": scales(g, 7)}, {}, "the scale has the shape"),
        (BY_NAME["fp8-block"].store, {**FP8, "transform_config": {"R1": {}}}, "in another basis"),
        (lambda g: {".weight": fp8(g, OUT, IN), ".weight_scale": scales(g, OUT, 1).to(torch.complex64)}, {}, "accepts complex64 as the dtype of the scale"),
        *((without(end, name), BY_NAME[name].settings | more, "the zero points are missing") for name, end, more in NO_ZEROS),
        (lambda g: {**BY_NAME["gptq"].store(g), ".qzeros": torch.ones(4, 8, dtype=torch.int64)}, {}, "the zero points are int64, not int32 or uint32"),
        (lambda g: {**BY_NAME["gptq"].store(g), ".qzeros": torch.ones(3, 8, dtype=torch.int32)}, {}, "the zero points have the shape [3, 8], but the scales need [4, 8]"),
        (lambda g: {**BY_NAME["awq"].store(g), ".qzeros": torch.ones(3, 8, dtype=torch.int32)}, BY_NAME["awq"].settings, "the zero points have the shape [3, 8], but the scales need ["),
        (lambda g: {**BY_NAME["fp8-tensor"].store(g), ".weight_scale_inv": torch.full((1,), 7.0)}, {}, "the tensor has two scales (weight_scale_inv and weight_scale), which differ"),
        (lambda g: {**BY_NAME["awq"].store(g), ".scales": torch.ones(0, OUT).half()}, BY_NAME["awq"].settings, "the stored tensor scales has no elements"),
        (lambda g: {**BY_NAME["int8"].store(g), ".weight_zero_point": torch.zeros(3, dtype=torch.int8)}, {}, "the zero points have the shape [3], which does not fit the scales [64, 1]"),
        (awq_gemv, BY_NAME["awq"].settings | {"zero_point": False}, "the codes have the layout of matrix-vector products (gemv), which no decoder knows"),
    ],
)  # fmt: skip
def test_what_no_product_of_codes_and_scales_gives_is_refused(
    store: Callable[[torch.Generator], dict[str, torch.Tensor]], settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    assert why in refused(store, settings, tmp_path / "m")


@pytest.mark.parametrize("change", [0, 1])
def test_large_scales_that_are_equal_are_one_scale(change: int, tmp_path: Path) -> None:
    """Two scales of 1.2 MB, which are read in pieces: the last values are compared, too."""
    rows = 300_000
    scale = torch.ones(rows, 1)
    other = scale.clone()
    other[-1] += change
    parts = {".weight": torch.ones(rows, 2).to(torch.float8_e4m3fn), ".weight_scale": scale, ".weight_scale_inv": other}
    state = {f"q_proj{end}": part for end, part in parts.items()}
    save_file(state, tmp_path / "model.safetensors")
    if change:
        with pytest.raises(cs.PlanError, match=r"\(weight_scale_inv and weight_scale\), which differ"):
            cs.convert(tmp_path / "model.safetensors", dequantize=True)
    else:
        cs.apply(cs.convert(tmp_path / "model.safetensors", dequantize=True), tmp_path / "out.safetensors")
        assert list(load_file(tmp_path / "out.safetensors")) == ["q_proj.weight"]


def test_scales_that_cannot_be_compared_are_not_said_to_differ(tmp_path: Path) -> None:
    """A transposed tensor of a pickle is not stored in its order."""
    codes, scale = torch.ones(4, 6).to(torch.float8_e4m3fn), torch.ones(3, 2)
    torch.save({"q.weight": codes, "q.weight_scale": scale, "q.weight_scale_inv": torch.ones(2, 3).t()}, "m.pth")
    with pytest.raises(cs.PlanError, match=r"two scales \(.*\), which cannot be compared"):
        cs.convert("m.pth", dequantize=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_an_error_that_names_the_tensor(value: float, tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.k_proj.weight_scale_inv"][0, 1] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(cs.FormatError, match=r"k_proj.weight is NaN or infinite"):
        cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.costly
@pytest.mark.parametrize("number", [-1, 4, 2**31 - 1])
def test_an_order_that_names_no_group_is_an_error(number: int, tmp_path: Path) -> None:
    folder = BY_NAME["gptq"].folder(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    (key,) = (key for key in state if key.endswith("q_proj.g_idx"))
    state[key][5] = number
    save_file(state, folder / "model.safetensors")
    said = r"^the order of the columns \(g_idx\) of the quantised tensor \S*q_proj.weight contains a group index outside 0 to 3"
    sound = BY_NAME["gptq"].folder(tmp_path / "n")
    models = [folder, sound]
    for plan in (
        cs.convert(folder, dequantize=True),
        cs.average([sound, folder]),
        cs.average(models, encoding="dequantize"),
    ):
        with pytest.raises(cs.FormatError, match=said):
            cs.apply(plan, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(cs.PlanError, match=r"q_proj.weight .* \(g_idx\) contains a group index outside 0 to 3"):
        cs.average(models)  # the encoding of the first model is that of the output


@pytest.mark.long
def test_rows_of_words_that_the_columns_do_not_fill_are_refused() -> None:
    """The number of bits is computed from the rows, so these cannot be said to need others."""
    state = {
        "x.qweight": torch.ones(9, 16, dtype=torch.int32), "x.scales": torch.ones(2, 16).half(),
        "x.g_idx": (torch.arange(64) // 32).int(), "x.qzeros": torch.ones(2, 2, dtype=torch.int32),
    }  # fmt: skip
    save_file(state, "x.safetensors")
    said = "the qweight has 9 rows of 32-bit words, but 64 columns of 4 bits fill only 8: the number of columns or of"
    with pytest.raises(cs.CheckpointError, match=said):
        cs.convert("x.safetensors", dequantize=True)


def test_an_order_that_compressed_tensors_has_not_set_is_ignored(tmp_path: Path) -> None:
    """It makes the parameter with -1 everywhere, and fills it only for ``actorder: group``."""
    folder = BY_NAME["int4-packed"].folder(tmp_path / "m")
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "usual")
    state = load_file(folder / "model.safetensors")
    for key in [key for key in state if key.endswith(".weight_packed")]:
        columns = int(state[key.replace("_packed", "_shape")][1])
        state[key.replace("_packed", "_g_idx")] = torch.full((columns,), -1, dtype=torch.int32)
    save_file(state, folder / "model.safetensors")
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "unset")
    names = [tmp_path / name / "model.safetensors" for name in ("usual", "unset")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert not [note for note in cs.inspect(folder).notes if "group index" in note]


def test_values_beyond_the_dtype_are_counted(tmp_path: Path, ckpt: Any) -> None:
    def store(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {
            ".weight": eight_bits(generator, OUT, IN, dtype=torch.int8) | 64,
            ".weight_scale": torch.full((OUT, 1), 1e3),
        }

    Quantised("x", "", store, {"quant_method": "compressed-tensors", "format": "int-quantized"}).folder(tmp_path / "m")
    done = ckpt("convert", "m", "--dequantize", "--dtype", "float16", "-o", "out")
    assert done.code == 0
    assert "infinite" in done.out + done.err


def test_a_model_that_is_not_quantised_is_refused(tmp_path: Path, ckpt: Any) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    done = ckpt("convert", "a.safetensors", "--dequantize", "-o", "b.safetensors")
    assert done.code == 4
    assert "no tensor that matches is quantised" in done.err


@pytest.mark.long
def test_a_plan_in_a_file_makes_the_same(tmp_path: Path, ckpt: Any) -> None:
    BY_NAME["gptq"].folder(tmp_path / "m")
    assert ckpt("convert", "m", "--dequantize", "-o", "out").code == 0
    Path("plan.json").write_text(ckpt("convert", "m", "--dequantize", "-n", "--json").out)
    assert ckpt("apply", "plan.json", "-o", "again").code == 0
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_dequantize_is_an_operation_of_every_verb(tmp_path: Path) -> None:
    """A quantised model is merged into a plain one once it is decoded."""
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    plan = cs.rename(folder, operations=[{"dequantize": "model.layers.**"}], map=["model=decoder"])
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert found["decoder.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert not [key for key in found if "scale" in key]
    cs.apply(cs.rename(folder, operations=[{"dequantize": "**"}], map=[]), "whole")
    assert "quantization_config" not in json.loads(Path("whole/config.json").read_text())


def test_a_model_of_which_some_tensors_are_decoded_gets_no_configuration(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    plan = cs.rename(folder, operations=[{"dequantize": "**.q_proj.*"}])
    cs.apply(plan, "out")
    assert not Path("out/config.json").exists()
    assert any("config.json is not copied" in note for note in plan.notes)


def test_codes_that_another_operation_changed_are_not_decoded(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    with pytest.raises(cs.PlanError, match="an earlier operation has changed .*q_proj.weight"):
        cs.rename(folder, operations=[{"transpose": "**.q_proj.weight"}, {"dequantize": "**"}])
    with pytest.raises(cs.PlanError, match="no tensor that matches is quantised"):
        cs.rename(folder, operations=[{"dequantize": "**.norm.weight"}])


def test_a_decoded_model_is_merged_with_a_plain_one(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    cs.apply(cs.convert(folder, dequantize=True), "plain")
    other = {key: torch.zeros_like(tensor) for key, tensor in load_file("plain/model.safetensors").items()}
    save_file(other, "other.safetensors")
    plan = cs.transplant(folder, "other.safetensors", operations=[{"dequantize": "**"}])
    cs.apply(plan, "filled.safetensors")
    found, wanted = load_file("filled.safetensors"), load_file("plain/model.safetensors")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def uneven(method: str, size: int, *, order: bool) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    """Codes of 4 bits in 104 columns and groups of ``size``, the last of which is smaller; perhaps with a g_idx."""
    groups = -(-104 // size)

    def store(g: torch.Generator) -> dict[str, torch.Tensor]:
        ends = torch.arange(104, dtype=torch.int32) // size
        if method == "gptq":
            found = {
                ".qweight": words(g, 13, OUT), ".scales": scales(g, groups, OUT), ".qzeros": words(g, groups, OUT // 8),
            }  # fmt: skip
            return {**found, ".g_idx": ends} if order else found
        found = {".weight_packed": words(g, OUT, 13), ".weight_scale": scales(g, OUT, groups)}
        found[".weight_shape"] = torch.tensor([OUT, 104])
        return {**found, ".weight_g_idx": ends} if order else found

    return store


def with_group_size(method: str, size: int | None) -> dict[str, Any]:
    """The settings of ``uneven``, which state a group size."""
    if method == "gptq":
        return {"quant_method": "gptq", "bits": 4, "group_size": size, "sym": False}
    weights = {"num_bits": 4, "group_size": size, "symmetric": True}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize("method", ["gptq", "packed"])
@pytest.mark.parametrize("size", [32, 48])  # 104 columns are four times 26: the shapes alone would suggest this size
def test_the_last_group_is_smaller_if_the_settings_say_so(method: str, size: int, tmp_path: Path) -> None:
    found = []
    for order in (True, False):
        model = Quantised("x", "", uneven(method, size, order=order), with_group_size(method, size))
        checkpoint = cs.open_checkpoint(model.folder(tmp_path / f"{order}"))
        found.append(operate([checkpoint], [{"dequantize": "**"}])[0].checkpoint.tensor(f"{LAYERS[0]}.weight"))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", ["gptq", "packed"])
def test_groups_of_an_unknown_size_are_refused(method: str, tmp_path: Path) -> None:
    said = refused(uneven(method, 48, order=False), with_group_size(method, None), tmp_path / "refused")
    assert "there are 3 groups of scales for 104 columns, and no group_size in the settings fits" in said


@pytest.mark.parametrize("alone", [True, False])
def test_weights_without_settings_are_said_to_have_none(alone: bool, tmp_path: Path) -> None:
    folder = Quantised("x", "", uneven("gptq", 48, order=False)).folder(tmp_path / "m")
    if alone:
        (folder / "config.json").unlink()
    with pytest.raises(cs.PlanError) as error:
        cs.convert(folder / "model.safetensors", dequantize=True)
    why = "there are 3 groups of scales for 104 columns, and no config.json next to the weights has the settings"
    assert why in error.value.message


@pytest.mark.parametrize("modes", [("mxfp8", "mxfp4"), ("mxfp4", "nvfp4"), ("affine", "mxfp4")])
def test_the_mode_of_mlx_that_fits_the_scales_is_taken(modes: tuple[str, str], tmp_path: Path) -> None:
    def store(g: torch.Generator) -> dict[str, torch.Tensor]:
        return {".weight": words(g, OUT, IN // 8).view(torch.uint32), ".scales": eight_bits(g, OUT, IN // 32) // 2}

    def weight(name: str, settings: dict[str, Any]) -> torch.Tensor:
        checkpoint = cs.open_checkpoint(Quantised("x", "", store, settings).folder(tmp_path / name))
        return operate([checkpoint], [{"dequantize": "**"}])[0].checkpoint.tensor(f"{LAYERS[0]}.weight")

    settings = {"bits": 4, "group_size": 32, "mode": modes[0], "other": {"bits": 4, "group_size": 32, "mode": modes[1]}}
    assert torch.equal(weight("both", settings), weight("one", {"bits": 4, "group_size": 32, "mode": "mxfp4"}))
    said = refused(store, {"bits": 4, "group_size": 32, "mode": "affine"}, tmp_path / "affine")
    assert "has no biases, and no setting names a mode without biases (mxfp4, nvfp4, mxfp8)" in said
    said = refused(store, {"bits": 4, "group_size": 32, "mode": "nvfp4"}, tmp_path / "other")
    assert "the scales do not fit the codes in the mode nvfp4" in said


def test_two_equal_scales_are_one(tmp_path: Path) -> None:
    def store(g: torch.Generator) -> dict[str, torch.Tensor]:
        made = BY_NAME["fp8-tensor"].store(g)
        return {**made, ".weight_scale_inv": made[".weight_scale"].clone()}

    receipt = cs.apply(cs.convert(Quantised("x", "", store).folder(tmp_path / "m"), dequantize=True), tmp_path / "out")
    assert receipt.counts["derived"] == len(LAYERS)
