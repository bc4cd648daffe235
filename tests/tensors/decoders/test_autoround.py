"""AutoRound's packings of GPTQ codes: zero points are stored less 1, or as they are, as ``packing_format`` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError
from ckptsurgeon.util.notes import is_serious

COLUMNS, ROWS, STORED = 64, 16, 7


def saved(path: Path, packing: str | None, state: dict[str, torch.Tensor] | None = None, **more: object) -> Path:
    """A layer of 4 bits whose codes are all 9, and whose stored zero points are all 7, in one group of 64."""
    state = state or {
        "layer.qweight": torch.full((COLUMNS // 8, ROWS), 0x99999999 - (1 << 32), dtype=torch.int32),
        "layer.qzeros": torch.full((1, ROWS // 8), 0x77777777, dtype=torch.int32),
        "layer.scales": torch.full((1, ROWS), 0.5).half(),
    }
    path.mkdir()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": False, "data_type": "int"}
    settings |= {"packing_format": packing} if packing else {}
    settings |= more
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return path


def with_awq() -> dict[str, torch.Tensor]:
    """Codes of AWQ, which are packed along the outputs."""
    return {
        "layer.qweight": torch.zeros(COLUMNS, ROWS // 8, dtype=torch.int32),
        "layer.qzeros": torch.zeros(1, ROWS // 8, dtype=torch.int32),
        "layer.scales": torch.full((1, ROWS), 0.5).half(),
    }


def refused(folder: Path) -> list[str]:
    """Return the fields that ``ckpt check`` names as a failure of the settings."""
    rows = [row for row in cs.check(folder).rows if row.id == "quantisation"]
    found = [one.what for row in rows for one in row.found if one.status.name == "FAIL"]
    return ["packing_format" for what in found if "packing_format" in what]


@pytest.mark.parametrize(
    ("packing", "zero"),
    [
        (None, STORED + 1),
        ("auto_round:auto_gptq", STORED + 1),
        ("auto_round", STORED),
        ("auto_round:gptqmodel", STORED),
    ],
)
def test_zero_points_are_read_as_the_packing_stores_them(packing: str | None, zero: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", packing)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


@pytest.mark.parametrize("packing", ["auto", "auto_round:gptq", "Auto_Round:Auto_GPTQ"])
def test_other_names_of_the_first_packing_are_known(packing: str, tmp_path: Path) -> None:
    found = cs.inspect(saved(tmp_path / "m", packing)).notes
    assert not [note for note in found if "packing_format" in note]


@pytest.mark.parametrize("packing", ["auto_round:foo", "auto_gptq", "auto_round:auto_awq", "auto_round:awq"])
def test_codes_under_an_unknown_packing_or_that_of_other_codes_are_not_decoded(packing: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", packing)
    with pytest.raises(CheckpointError, match=r"packing_format .*auto_round:auto_gptq or auto_round or ") as caught:
        cs.convert(folder, dequantize=True)
    assert caught.value.exit_code == 4
    assert refused(folder) == ["packing_format"]


def test_codes_of_awq_need_their_own_packing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "auto_round:auto_gptq", with_awq())
    with pytest.raises(CheckpointError, match=r"packing_format .*must be auto_round:auto_awq"):
        cs.convert(folder, dequantize=True)
    assert refused(folder) == ["packing_format"]
    right = saved(tmp_path / "right", "auto_round:auto_awq", with_awq())
    assert refused(right) == []
    cs.convert(right, dequantize=True)


@pytest.mark.parametrize(("packing", "is_refused"), [(..., False), (None, True)])
def test_the_packing_that_is_assumed_is_said(packing: object, is_refused: bool, tmp_path: Path) -> None:
    """AutoRound assumes its own default if the field is missing, and loads no codes if it is null."""
    folder = saved(tmp_path / "m", None)
    if packing is None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["packing_format"] = None
        (folder / "config.json").write_text(json.dumps(config))
    (note,) = (note for note in cs.inspect(folder).notes if "packing_format" in note)
    assert "auto_round:auto_gptq is assumed" in note
    assert is_serious(note) is is_refused


def test_gptq_itself_does_not_read_the_packing(tmp_path: Path) -> None:
    """``checkpoint_format`` says how its zero points are stored, less 1 if it is missing."""
    folder = saved(tmp_path / "m", "auto_round")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (folder / "config.json").write_text(json.dumps(config))
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - STORED - 1) * 0.5))


@pytest.mark.parametrize(
    ("backend", "zero"),
    [
        ("auto_round:exllamav2", STORED),
        ("autoround:exllamav2", STORED),
        ("auto_round:tritonv2", STORED),
        ("auto_round:gptq:exllamav2", STORED + 1),
        ("auto_gptq:exllamav2", STORED + 1),
        ("auto", STORED + 1),
    ],
)
def test_settings_of_older_versions_name_a_backend_instead(backend: str, zero: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", None, quant_method="intel/auto-round", backend=backend)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


@pytest.mark.parametrize(("act_bits", "zero"), [(16, STORED), (8, STORED + 1), (4, STORED + 1)])
def test_models_with_quantised_activations_are_packed_by_another_module(
    act_bits: int, zero: int, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "m", "auto_round", act_bits=act_bits)
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - zero) * 0.5))


def test_a_packing_format_is_said_rather_than_the_backend(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "auto_round:auto_gptq", backend="auto_round:tritonv2")
    cs.apply(cs.convert(folder, dequantize=True, dtype="float32"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["layer.weight"]
    assert torch.equal(found, torch.full((ROWS, COLUMNS), (9 - STORED - 1) * 0.5))


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ("auto_round:auto_gptq", "auto_round:gptqmodel", True),
        ("auto_round", "auto_round:auto_gptq", True),
        ("auto_round", "auto_round:gptqmodel", False),
        ("auto_round:auto_gptq", None, False),
    ],
)
def test_codes_are_not_carried_under_another_packing(
    first: str, second: str | None, differ: bool, tmp_path: Path
) -> None:
    here, there = saved(tmp_path / "a", first), saved(tmp_path / "b", second)
    if not differ:
        cs.transplant(here, there)
        return
    with pytest.raises(CheckpointError, match="checkpoint_format"):
        cs.transplant(here, there)


@pytest.mark.parametrize("packings", [("auto_round:mine", "auto_round:auto_gptq"), ("auto_round", "auto_round:mine")])
def test_codes_of_an_unknown_packing_are_not_carried_into_another(packings: tuple[str, str], tmp_path: Path) -> None:
    source, destination = (saved(tmp_path / name, one) for name, one in zip("ab", packings, strict=True))
    with pytest.raises(CheckpointError, match="packing_format is"):
        cs.transplant(source, destination)
    assert cs.transplant(source, saved(tmp_path / "c", packings[0])).steps


def four_bits(path: Path, data_type: str, group: int) -> Path:
    """A layer of ones with exponents (or 8-bit floats) in bytes as scales, as AutoRound 0.16 stores three encodings."""
    state = {
        "layer.weight_packed": torch.full((ROWS, COLUMNS // 2), 0x22, dtype=torch.uint8),
        "layer.weight_scale": torch.full((ROWS, COLUMNS // group), 127, dtype=torch.uint8),
    }
    return saved(path, "auto_round:llm_compressor", state, data_type=data_type, group_size=group, act_bits=4)


@pytest.mark.parametrize(
    ("data_type", "group", "method"),
    [("mx_int", 32, "mxint4"), ("nvfp4_v2", 16, "nvfp4_e5m3"), ("MX_INT", 32, "mxint4")],
)
def test_codes_with_the_shapes_of_mxfp4_are_not_decoded_as_mxfp4(
    data_type: str, group: int, method: str, tmp_path: Path
) -> None:
    """AutoRound 0.16.1: decoded as mxfp4, weights of mx_int had errors of 132 %."""
    folder = four_bits(tmp_path / "m", data_type, group)
    assert [one.method for one in cs.inspect(folder).codes.tensors] == [method]
    with pytest.raises(CheckpointError, match=f"no decoder knows {method}"):
        cs.convert(folder, dequantize=True)
    cs.apply(cs.convert(folder), tmp_path / "copy")
    assert load_file(tmp_path / "copy" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_codes_are_not_carried_into_another_encoding_with_equal_shapes(tmp_path: Path) -> None:
    integers, floats = four_bits(tmp_path / "a", "mx_int", 32), four_bits(tmp_path / "b", "mx_fp", 32)
    for pair in ((integers, floats), (floats, integers)):
        with pytest.raises(CheckpointError, match="mxint4") as caught:
            cs.transplant(*pair)
        assert caught.value.exit_code == 4
    assert cs.transplant(floats, four_bits(tmp_path / "c", "mx_fp_rceil", 32)).steps
