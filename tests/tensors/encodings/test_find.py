from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.find_codes import find_codes
from ckptsurgeon.tensors.info import TensorInfo

from ...helpers.zoo import LAYERS, PLAIN, ZOO, Quantised


@pytest.mark.parametrize("model", ZOO, ids=lambda one: one.name)
def test_each_encoding_is_recognised_with_all_its_parts_and_true_parameters(model: Quantised, tmp_path: Path) -> None:
    codes = cs.open_checkpoint(model.folder(tmp_path / "m")).codes
    stored = set(model.tensors()) - set(PLAIN) - set(model.biases())
    assert set(codes.by_key) == stored
    assert len(codes.tensors) == len(model.layers)
    for one in codes.tensors:
        assert one.method == model.method
        assert one.parameters == model.parameters


@pytest.mark.parametrize("model", ZOO, ids=lambda one: one.name)
def test_the_name_of_a_logical_tensor_is_that_of_the_plain_one(model: Quantised, tmp_path: Path) -> None:
    codes = cs.open_checkpoint(model.folder(tmp_path / "m")).codes
    plain = {layer if "experts" in layer else f"{layer}.weight" for layer in model.layers}
    named = {one.name for one in codes.tensors}
    assert named == plain


def test_most_encodings_are_known_without_a_configuration() -> None:
    for model in ZOO:
        infos = {
            key: TensorInfo(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for key, t in model.tensors().items()
        }
        for one in find_codes(infos).tensors:
            assert one.parameters in (model.parameters, None), model.name
            assert one.method == model.method or one.parameters is None, model.name
        assert find_codes(infos) or model.name in ("unknown", "unknown-alone")


def test_plain_8_bit_floats_and_integers_stay_numbers() -> None:
    tensors = {
        "a.weight": TensorInfo("float8_e4m3fn", (4, 4)),
        "a.bias": TensorInfo("float32", (4,)),
        "bn.num_batches_tracked": TensorInfo("int64", ()),
        "attn.bias": TensorInfo("uint8", (1, 1, 8, 8)),
        "attn.masked_bias": TensorInfo("float32", ()),
        "attn.logit_scale": TensorInfo("float32", (4,)),
        "attn.relative_position_index": TensorInfo("int64", (49, 49)),
        "norm.scale": TensorInfo("float32", (4,)),
        "norm.step": TensorInfo("int32", ()),
    }
    codes = find_codes(tensors)
    assert not codes
    assert codes.parameters("a.weight", tensors["a.weight"]) == 16


@pytest.mark.parametrize(
    ("mask", "gain"),
    [("mask", "logit_scale"), ("mask", "layer_scale"), ("mask", "scale"), ("mask", "layer_scale_1"), ("mask", "scales"),
     ("kernel", "logit_scale"), ("layer", "layer_scale"), ("logit", "logit_scale"), ("mask", "mask_factor"),
     ("mask", "attn_scale"), ("mask", "upscale"), ("mask", "mask_rescaled"), ("mask", "softmax"), ("mask", "argmax")],
)  # fmt: skip
@pytest.mark.parametrize("module", ["", "model.visual."])
def test_integers_beside_a_gain_of_the_network_stay_numbers(module: str, mask: str, gain: str) -> None:
    tensors = {
        f"{module}{mask}": TensorInfo("uint8", (8, 8)),
        f"{module}{gain}": TensorInfo("float32", ()),
        f"{module}position_ids": TensorInfo("int32", (1, 8)),
    }
    assert not find_codes(tensors)


@pytest.mark.parametrize(
    ("codes", "scale"),
    [("x", "x_scale"), ("x", "x_scale_inv"), ("x", "x_absmax"), ("x", "x_zero_point"), ("weight", "row_scale"),
     ("weight", "scale"), ("weight", "scales"), ("weight", "w_scale"), ("qweight", "w_scale"), ("x", "x.absmax"),
     ("weight", "input_descale"), ("weight", "w_descale"), ("weight", "weight_amax"), ("weight", "input_amax"),
     ("weight", "weight_quantizer._amax"), ("x", "x_descale"),
     ("weight", "weight_qscale"), ("x", "x_qscale"), ("weight", "weight_invscale")],
)  # fmt: skip
@pytest.mark.parametrize("module", ["", "model.up_proj."])
def test_integers_beside_a_scale_of_their_own_are_codes(module: str, codes: str, scale: str) -> None:
    tensors = {
        f"{module}{codes}": TensorInfo("uint8", (8, 8)),
        f"{module}{scale}": TensorInfo("float16", (8,)),
        f"{module}mask": TensorInfo("int32", (8, 8)),
        f"{module}logit_scale": TensorInfo("float32", ()),
    }
    (one,) = find_codes(tensors).tensors
    assert one.keys == (f"{module}{codes}", f"{module}{scale}")
    named = codes.removeprefix("q") if codes == "qweight" else codes
    assert (one.name, one.parameters, one.at_least) == (f"{module}{named}", None, 64)


@pytest.mark.parametrize("scale", ["weight_qscale", "weight_rescale", "weight_MyScales", "weight_block_scaling"])
def test_8_bit_floats_beside_a_scale_of_any_name_are_codes(scale: str) -> None:
    tensors = {"m.weight": TensorInfo("float8_e4m3fn", (8, 8)), f"m.{scale}": TensorInfo("float32", (1,))}
    assert [one.keys for one in find_codes(tensors).tensors] == [("m.weight", f"m.{scale}")]


@pytest.mark.parametrize("scale", ["w_s", "scale_of_w", "s", "alpha", "weight_factor"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_float_beside_a_matrix_of_8_bit_floats_is_its_scale(scale: str, shape: tuple[int, ...]) -> None:
    scaled = TensorInfo("float32", shape)
    tensors = {"l.w": TensorInfo("float8_e4m3fn", (8, 8)), f"l.{scale}": scaled, "l.bias": TensorInfo("float32", (8,))}
    assert [one.keys for one in find_codes(tensors).tensors] == [("l.w", f"l.{scale}")]
    if scale in ("s", "alpha"):
        assert not find_codes({**tensors, "l.w": TensorInfo("float8_e4m3fn", (8,))}).tensors


def test_codes_that_share_a_scale_are_one_tensor() -> None:
    tensors = {
        "m.up": TensorInfo("uint8", (8, 8)),
        "m.up_high": TensorInfo("uint8", (8, 2)),
        "m.up_scale": TensorInfo("float16", (8,)),
        "m.bias": TensorInfo("float16", (8,)),
    }
    (one,) = find_codes(tensors).tensors
    assert (one.codes, one.more_codes) == ("m.up", ("m.up_high",))
    assert set(one.keys) == tensors.keys() - {"m.bias"}
    assert find_codes(tensors).parameters("m.up_high", tensors["m.up_high"]) == 0


def test_codes_with_scales_of_their_own_are_told_apart() -> None:
    names = ("up", "up_two", "down")
    tensors = {f"m.experts.{name}": TensorInfo("uint8", (8, 8)) for name in names}
    tensors |= {f"m.experts.{name}_scale": TensorInfo("float16", (8,)) for name in names}
    assert {one.keys for one in find_codes(tensors).tensors} == {
        (f"m.experts.{name}", f"m.experts.{name}_scale") for name in names
    }


def test_all_of_a_module_is_needed_if_the_folder_says_that_it_is_quantised() -> None:
    tensors = {
        "m.X": TensorInfo("int32", (8, 32)),
        "m.y": TensorInfo("float16", (1, 64)),
        "m.workspace": TensorInfo("int32", (16,)),
        "m.bias": TensorInfo("float16", (64,)),
        "m.norm.weight": TensorInfo("float16", (64,)),
        "n.weight": TensorInfo("float16", (64,)),
    }
    assert not find_codes(tensors)
    (one,) = find_codes(tensors, lambda: {"quant_method": "marlin"}).tensors
    assert (one.name, one.codes) == ("m.weight", "m.X")
    assert one.parts == {".X": "m.X", ".y": "m.y", ".workspace": "m.workspace"}


@pytest.mark.costly
@pytest.mark.parametrize("settings", [{}, {"quant_method": "secret"}], ids=["alone", "in a folder"])
@pytest.mark.parametrize("end", ["_scale", "_s"])
def test_a_flat_model_is_looked_through_in_a_number_of_looks_that_grows_with_it(
    settings: dict[str, str], end: str
) -> None:
    looked = 0

    class Counting(str):
        """A key that counts how often it is compared or written."""

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return str.__eq__(self, other)

        def __ne__(self, other: object) -> bool:
            return not self == other

        def __format__(self, spec: str) -> str:
            nonlocal looked
            looked += 1
            return str.__format__(self, spec)

    def looks(number: int) -> int:
        nonlocal looked
        tensors: dict[str, TensorInfo] = {}
        for i in range(number):
            tensors[Counting(f"w{i}")] = TensorInfo("uint8", (4, 4))
            tensors[Counting(f"w{i}{end}")] = TensorInfo("float32", (4,))
        looked = 0
        codes = find_codes(tensors, lambda: settings)
        assert len(codes.tensors) == (number if settings or end == "_scale" else 0)
        return looked

    assert looks(2000) <= 3 * looks(1000)


def test_codes_at_the_top_level_are_found() -> None:
    codes = find_codes({"qweight": TensorInfo("int32", (16, 64)), "scales": TensorInfo("float16", (4, 64))})
    assert [(one.name, one.keys) for one in codes.tensors] == [("weight", ("qweight", "scales"))]


def test_8_bit_floats_of_a_folder_that_says_it_is_quantised_are_codes_without_scales(tmp_path: Path) -> None:
    model = next(one for one in ZOO if one.name == "fp8-block")
    folder = model.folder(tmp_path / "m")
    save_file({k: v for k, v in model.tensors().items() if "scale" not in k}, folder / "model.safetensors")
    codes = cs.open_checkpoint(folder).codes
    assert {one.method for one in codes.tensors} == {"an unknown encoding (fp8), without scales"}
    assert {one.name for one in codes.tensors} == {f"{layer}.weight" for layer in LAYERS}
    with pytest.raises(
        cs.PlanError, match="the scale that decodes the codes is missing. Copy it from the quantised model"
    ):
        cs.convert(folder, dequantize=True)


@pytest.mark.parametrize(
    "config",
    ['{"quantization_config": 7}', '{"quantization_config": {"bits": 1e999}}', "[", '{"quantization_config": {"bits": -4}}',
     '{"quantization_config": {"bits": {"bits": [[[]]]}}}', '{"a": 1, "a": 2}', "\ud800".encode("utf-8", "surrogatepass")],
)  # fmt: skip
def test_a_configuration_that_is_nonsense_is_no_error(config: str | bytes, tmp_path: Path) -> None:
    model = next(one for one in ZOO if one.name == "gptq")
    folder = model.folder(tmp_path / "m")
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    assert {one.method for one in cs.open_checkpoint(folder).codes.tensors} == {"GPTQ, 4 bits"}


def test_shapes_that_fit_no_layout_are_codes_of_an_unknown_encoding_if_a_scale_lies_beside() -> None:
    tensors = {"m.weight": TensorInfo("uint8", (2, 0)), "m.weight_scale_2": TensorInfo("float32", (0,))}
    assert not find_codes(tensors)  # no element: nothing to decode
    tensors = {"m.qweight": TensorInfo("int8", (2, 3)), "m.scales": TensorInfo("float32", (0, 0))}
    assert [one.method for one in find_codes(tensors).tensors] == ["an unknown encoding"]


@pytest.mark.parametrize(
    ("key", "dtype", "shape"),
    [
        ("m.weight", "uint32", (8, 8)),
        ("m.weight", "uint16", (8, 8)),
        ("m.weight", "uint8", (8, 8)),
        ("m.up_proj_blocks", "uint8", (4, 8, 4, 16)),
    ],
)
def test_codes_whose_scales_are_lost_are_no_numbers(key: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert [one.method for one in find_codes({key: TensorInfo(dtype, shape)}).tensors] == [
        "an unknown encoding, without scales"
    ]
    assert not find_codes({key: TensorInfo(dtype, shape[:1])})
    assert not find_codes({key.replace("weight", "mask").replace("blocks", "mask"): TensorInfo(dtype, shape)})


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_integers_called_weight_are_codes_only_if_something_shows_it(dtype: str) -> None:
    table = {"ids.weight": TensorInfo(dtype, (8, 8))}
    assert not find_codes(table)
    assert find_codes(table, lambda: {"quant_method": "secret"})
    others = {"m.qweight": TensorInfo("int8", (8, 8)), "m.scales": TensorInfo("float32", (8,))}
    assert "ids.weight" in find_codes({**others, **table}).by_key
    assert "ids.weight" in find_codes({**table, "ids.weight_scale": TensorInfo("float32", (8, 1))}).by_key


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_a_table_of_integers_is_copied_and_named(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"ids.weight": torch.arange(64).reshape(8, 8).to(dtype), "out.weight": torch.ones(8, 8)}
    torch.save(state, "a.pth")
    for command in (
        ("average", "a.pth", "a.pth"), ("merge", "a.pth", "a.pth", "-m", "linear", "--weights", "1,1"),
        ("transplant", "a.pth", "a.pth"), ("convert", "a.pth"),
    ):  # fmt: skip
        done = ckpt(*command, "-o", "x.pth", "--force")
        assert done.code == 0, done
        assert "they are treated as plain integers" in " ".join(done.err.split())
        assert torch.equal(torch.load("x.pth")["ids.weight"], state["ids.weight"])
    report = cs.check("a.pth")
    assert report.row("quantisation").status.value == "WARN"
    assert cs.inspect("a.pth").parameters == 64


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora.B": ("int32", (8, 32)), "lora.s": ("float32", (1, 64))},  # the shapes are not Marlin's
        {"lora.B": ("int32", (8, 128)), "lora.s": ("int32", (1, 64))},
        {"lora.B": ("float32", (8, 128)), "lora.s": ("float32", (1, 64))},
        {"svd.trellis": ("float32", (8, 8)), "svd.SU": ("float32", (8,)), "svd.SV": ("float32", (8,))},
        {"svd.Qidxs": ("int64", (8, 8)), "svd.U": ("float32", (8,))},
        {"svd.Qidxs": ("float32", (8, 8)), "svd.SU": ("float32", (8,)), "svd.SV": ("float32", (8,))},
        {"vq.codes": ("int64", (8, 8, 1)), "vq.codebooks": ("float32", (8, 8, 1, 8))},
        {"vq.codes": ("float32", (8, 8, 1)), "vq.codebooks": ("float32", (8, 8, 1, 8))},
        {"net.W_q": ("float32", (8, 8)), "net.scale": ("float32", (8, 1)), "net.zero": ("float32", (8, 1))},
        {"net.weight": ("float16", (8, 8)), "net.weight_scales": ("float16", (8,))},
        {"sparse.row_offsets": ("int64", (9,)), "sparse.dense_weights": ("float32", (8,))},
        {"table.lookup_table": ("float32", (8, 16)), "table.rows": ("int32", (8,)), "table.weight": ("float32", (8, 8))},
    ],
    ids=lambda one: next(iter(one)),
)  # fmt: skip
def test_plain_tensors_with_names_of_codes_stay_numbers(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert not find_codes({key: TensorInfo(*info) for key, info in tensors.items()})


def test_a_large_model_without_codes_costs_one_look_at_its_dtypes() -> None:
    looked = 0

    class Counting(dict[str, TensorInfo]):
        def __getitem__(self, key: str) -> TensorInfo:
            nonlocal looked
            looked += 1
            return super().__getitem__(key)

    assert not find_codes(Counting({f"w{i}": TensorInfo("bfloat16", (2,)) for i in range(1000)}))
    assert looked == 0


def test_quantised_tensors_of_one_form_have_the_same_encoding_endings_dtypes_and_shapes() -> None:
    def coded(name: str, rows: int = 128, scales: str = "float32") -> dict[str, TensorInfo]:
        return {
            f"{name}.weight": TensorInfo("float8_e4m3fn", (rows, 128)),
            f"{name}.weight_scale_inv": TensorInfo(scales, (rows // 128, 1)),
        }

    unknown = {f"{name}.codes": TensorInfo("uint8", (8, 8)) for name in "yz"}
    scales = {f"{name}.codes_scale": TensorInfo("float32", (8,)) for name in "yz"}
    found = find_codes(
        {**coded("a"), **coded("b", 256), **coded("c"), **coded("d", scales="bfloat16"), **unknown, **scales}
    )
    forms = {one.name.partition(".")[0]: one.form for one in found.tensors}
    assert forms["a"] == forms["c"]
    assert len(set(forms.values())) == len("abdyz")
    assert [one.name for one in found.by_form().values()] == [one.name for one in found.tensors if one.name[0] != "c"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torch_s_own_quantised_tensors_are_codes(tmp_path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)}, tmp_path / "q.pth")
    assert [one.method for one in cs.open_checkpoint(tmp_path / "q.pth").codes.tensors] == ["quantised by torch"]


@pytest.mark.parametrize(
    ("codes", "scale", "block", "kind"),
    [
        ((128, 256), (1, 2), [128, 128], "block scales"), ((128, 256), (1, 2), None, "block scales"),
        ((128, 128), (1, 1), [128, 128], "block scales"), ((128, 128), (1, 1), None, "one scale"),
        ((256, 256), (2, 2), "a b", "block scales"), ((128, 256), (128, 1), None, "channel scales"),
        ((128, 256), (128,), [128, 128], "channel scales"), ((128, 256), (1,), None, "one scale"),
        ((128, 256), (), None, "one scale"), ((4, 128, 256), (4, 128, 1), None, "channel scales"),
        ((4, 128, 256), (4, 1, 2), None, "block scales"), ((4, 128, 256), (4, 1, 1), None, "one scale"),
        ((4, 128, 256), (4,), None, "one scale"),
    ],
)  # fmt: skip
def test_fp8_is_called_after_what_its_scales_are_for(
    codes: tuple[int, ...], scale: tuple[int, ...], block: object, kind: str
) -> None:
    tensors = {
        "fc.weight": TensorInfo("float8_e4m3fn", codes),
        "fc.weight_scale_inv": TensorInfo("float32", scale),
    }
    (one,) = find_codes(tensors, lambda: {"weight_block_size": block} if block else {}).tensors
    assert one.method == f"fp8 with {kind}"
