"""Archives of torch.export: as torch wrote them (`make oracle-export`), and archives that break rules."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ...helpers.export_files import archive, entry, program
from ...helpers.torch_files import saved

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "export"
ONES = torch.ones(2, 3).numpy().tobytes()
W = {"data/weights/weight_0": ONES}
CONFIG = "m/data/weights/model_weights_config.json"


def opened(data: bytes, root: str | None = None) -> cs.Checkpoint:
    Path("x.pt2").write_bytes(data)
    return cs.open_checkpoint("x.pt2", root)


def wanted(name: str, part: str) -> dict[str, Any]:
    found = json.loads((GOLDEN / "shapes.json").read_text())["shapes"]
    return {key.removeprefix(f"{name}/{part}/"): one for key, one in found.items() if key.startswith(f"{name}/{part}/")}


@pytest.mark.parametrize("part", ["state_dict", "constants"])
@pytest.mark.parametrize("name", ["program", "old", "older", "types", "compiled"])
def test_every_tensor_has_the_values_that_torch_reads(name: str, part: str) -> None:
    shapes = wanted(name, part)
    if not shapes:
        pytest.skip("compiled programs have weights only")
    with cs.open_checkpoint(str(GOLDEN / f"{name}.pt2"), part) as found, np.load(GOLDEN / "values.npz") as values:
        assert list(found) == list(shapes)
        for key, (dtype, shape) in shapes.items():
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape)
            if key == "fake":  # torch reads zeros, which nobody saved
                assert found[key].opaque == "it was saved without values, from a fake tensor"
                continue
            stored = found.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert stored.tobytes() == values[f"{name}/{part}/{key}"].tobytes(), key


@pytest.mark.parametrize("name", ["program", "old", "older"])
def test_parameters_and_buffers_are_the_root_and_stay_tied(name: str) -> None:
    with cs.open_checkpoint(str(GOLDEN / f"{name}.pt2")) as found:
        assert found.root == "state_dict"
        assert found["a.weight"].storage is found["b.weight"].storage
        assert found["part"].storage is found["steps"].storage
    cs.apply(cs.convert(str(GOLDEN / f"{name}.pt2")), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert load_file("out.safetensors")["part"].tolist() == [2, 3, 4]


@pytest.mark.long
def test_what_torch_exports_here_is_read() -> None:
    linear = torch.nn.Linear(3, 2)
    torch.export.save(torch.export.export(linear, (torch.ones(1, 3),)), "x.pt2")
    with cs.open_checkpoint("x.pt2") as found:
        assert torch.equal(found.tensor("weight"), linear.weight)
        assert torch.equal(found.tensor("bias"), linear.bias)


def test_what_is_not_read_is_noted() -> None:
    text = "read the tensors of a program of torch.export, not the program"
    with opened(program({"w": entry("weight_0")}, W)) as found:
        assert found.notes == (text,)
    records = {
        **W, "data/weights/weight_1": b"1234", "extra/labels.txt": b"a", "data/executorch/net.pte": b"ET12",
        "data/constants/custom_obj_0": b"PK", "data/constants/opaque_obj_0": b"\x80\x02}.",
        "data/aotinductor/net/a.so": b"\x7fELF", "data/sample_inputs/model.pt": b"PK", ".data/version": b"6\n",
    }  # fmt: skip
    objects = {
        name: {**entry(f"{name}_0", use_pickle=True), "tensor_meta": None} for name in ("custom_obj", "opaque_obj")
    }
    with opened(program({"w": entry("weight_0")}, records, objects)) as found:
        assert found.notes[:4] == (
            f"{text}, and not 2 objects among its constants",
            "not read, since no tensor refers to them: data/weights/weight_1",
            "not read, compiled by AOTInductor: net",
            "also in the archive, and not read: extra/labels.txt, data/executorch/net.pte",
        )


def test_several_programs_are_told_apart() -> None:
    records = {**W, "data/weights/other_weights_config.json": json.dumps({"config": {"v": entry("weight_0")}}).encode(),
               "data/constants/other_constants_config.json": b'{"config": {}}'}  # fmt: skip
    data = program({"w": entry("weight_0")}, records)
    with opened(data, "other.state_dict") as found:
        assert found.notes[0] == "read the tensors of 2 programs of torch.export, not the programs"
        assert found.tensor("v").tolist() == [[1] * 3] * 2
    with pytest.raises(cs.ConfigError, match=r"model\.state_dict \(1 tensor\), other\.state_dict \(1 tensor\)"):
        opened(data)


def test_a_tensor_without_strides_of_its_own_is_marked() -> None:
    with opened(program({"w": entry("weight_0", layout=1), "v": entry("weight_0")}, W)) as found:
        assert found["w"].opaque == "it is sparse or has another special layout"
        assert found.tensor("v").tolist() == [[1] * 3] * 2


def test_big_endian_values_are_read() -> None:
    data = torch.arange(6.0).numpy().astype(">f4").tobytes()
    with opened(program({"w": entry("weight_0")}, {"data/weights/weight_0": data, "byteorder": b"big"})) as found:
        assert found.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_folder_or_an_archive_with_one_program_is_opened() -> None:
    Path("net").mkdir()
    Path("net/model.pt2").write_bytes((GOLDEN / "program.pt2").read_bytes())
    with zipfile.ZipFile("net.zip", "w") as made:
        made.write("net/model.pt2")
    for path in ("net", "net.zip"):
        with cs.open_checkpoint(path) as found:
            assert found.tensor("part").tolist() == [2, 3, 4]
    save_file({"other": torch.ones(2)}, "net/model.safetensors")
    with cs.open_checkpoint("net") as found:  # an export beside the weights
        assert list(found) == ["other"]


@pytest.mark.parametrize("name", ["program", "old", "older", "compiled"])
def test_a_program_at_an_address_is_read_by_ranges(name: str, hub: Any) -> None:
    with cs.open_checkpoint(hub.file(f"{name}.pt2", (GOLDEN / f"{name}.pt2").read_bytes())) as found:
        assert found.tensor("part").tolist() == [2, 3, 4, 5][: found["part"].numel]


def test_the_scan_looks_into_the_records(ckpt: Any) -> None:
    evil = b"cos\nsystem\n(S'true'\ntR."
    Path("x.pt2").write_bytes(program({"w": entry("weight_0")}, {**W, "data/constants/opaque_obj_0": evil}))
    done = ckpt("scan", "x.pt2")
    assert done.code == 1
    assert "system" in done.out
    assert ckpt("scan", str(GOLDEN / "program.pt2")).code == 0


def of(key: str, one: Any) -> bytes:
    return program({key: one}, W)


def without(name: str, value: bytes = b"", more: dict[str, bytes] = W) -> bytes:
    """The archive of one tensor with another value in a record."""
    return program({"w": entry("weight_0")}, {**more, name: value})


MISSING = {"path_name": "weight_0", "is_param": True}
PICKLED = {"data/weights/weight_0": saved({"a": torch.ones(2)})}
MANY_SIZES = json.dumps({"config": {"w": entry("weight_0", [1], [1])}}).encode()
MANY_SIZES = MANY_SIZES.replace(b'[{"as_int": 1}]', b"[" + b'{"as_int": 1}, ' * 99_999 + b'{"as_int": 1}]')
"""Written so as text: every process that tests makes all of these when it collects the tests."""
HOSTILE: dict[str, bytes] = {
    "another format": without("archive_format", b"pt3"),
    "another version": without("archive_version", b"1"),
    "two roots": archive({"a/archive_format": b"pt2", "b/archive_format": b"pt2"}),
    "no program": archive({"m/archive_format": b"pt2", "m/archive_version": b"0"}),
    "compiled alone": archive({"m/archive_format": b"pt2", "m/data/aotinductor/net/a.so": b"\x7fELF"}),
    "a program without weights": archive({"m/archive_format": b"pt2", "m/models/model.json": b"{}"}),
    "a configuration that is a list": without("data/weights/model_weights_config.json", b"[]"),
    "a configuration without tensors": without("data/weights/model_weights_config.json", b"{}"),
    "a configuration that is cut": without("data/weights/model_weights_config.json", b'{"config": {'),
    "a configuration nested too deeply": without("data/weights/model_weights_config.json", b"[" * 100_000),
    "a tensor twice": without("data/weights/model_weights_config.json", b'{"config": {"w": {}, "w": {}}}'),
    "a description that is a number": of("w", 1),
    "no use_pickle": of("w", MISSING),
    "a path that is a number": of("w", entry(1)),
    "a record that is missing": of("w", entry("weight_1")),
    "a path that leads out": of("w", entry("../../archive_format")),
    "no metadata": of("w", {**entry("weight_0"), "tensor_meta": None}),
    "an unknown dtype": of("w", entry("weight_0", dtype=99)),
    "a dtype that is a text": of("w", entry("weight_0", dtype="float32")),
    "a dtype that is true": of("w", entry("weight_0", dtype=True)),
    "sizes that are a number": of("w", entry("weight_0") | {"tensor_meta": {"dtype": 7, "sizes": 6}}),
    "a size that is a name": of("w", entry("weight_0", sizes=[{"as_expr": "s0"}, {"as_int": 3}])),
    "a negative size": of("w", entry("weight_0", (-2, 3))),
    "a size that is true": of("w", entry("weight_0", (True, 3))),
    "a negative stride": of("w", entry("weight_0", (2, 3), (-3, 1))),
    "too few strides": of("w", entry("weight_0", (2, 3), (1,))),
    "2^62 elements": of("w", entry("weight_0", (1 << 62,), (1,))),
    "sizes whose product overflows": of("w", entry("weight_0", (1 << 40, 1 << 40), (0, 0))),
    "100,000 dimensions": without("data/weights/model_weights_config.json", MANY_SIZES),
    "beyond the record": of("w", entry("weight_0", (2, 4), (4, 1))),
    "an offset beyond the record": of("w", entry("weight_0", storage_offset={"as_int": 1})),
    "a negative offset": of("w", entry("weight_0", storage_offset={"as_int": -1})),
    "an offset that is a name": of("w", entry("weight_0", storage_offset={"as_expr": "s0"})),
    "terabytes of strides of 0": of("w", entry("weight_0", (1 << 20, 1 << 20), (0, 0))),
    "half an element": program({"w": entry("weight_0")}, {"data/weights/weight_0": ONES + b"\0"}),
    "two dtypes of one record": program({"w": entry("weight_0"), "v": entry("weight_0", dtype=4)}, W),
    "compressed": program({"w": entry("weight_0")}, W, method=zipfile.ZIP_DEFLATED),
    "another byte order": without("byteorder", b"middle"),
    "a pickled tensor that is no archive": of("w", entry("weight_0", use_pickle=True)),
    "weights that are a list": without("data/weights/model.pt", saved([torch.ones(2)])),
    "weights that are cut": without("data/weights/model.pt", saved({"a": torch.ones(2)})[:-30]),
    "old weights that are missing": archive({"serialized_exported_program.json": b"{}"}),
    "old weights that are a tensor": archive(
        {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": saved(torch.ones(2))}
    ),
    "old weights that are cut": archive(
        {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": saved({"a": torch.ones(2)})[:99]}
    ),
    "compiled weights that are a list": without("data/aotinductor/net/weights_config.json", b"[]"),
    "a compiled weight that is a text": without("data/aotinductor/net/weights_config.json", b'{"w": "weight_0"}'),
    "a compiled weight that is a dict": without(
        "data/aotinductor/net/weights_config.json", b'{"v": ["weight_1", [2], [1], 0]}',
        {**W, "data/weights/weight_1": PICKLED["data/weights/weight_0"]},
    ),
    "a compiled weight beyond its tensor": without(
        "data/aotinductor/net/weights_config.json", b'{"v": ["weight_1", [2], [1], 1]}',
        {**W, "data/weights/weight_1": saved(torch.ones(2))},
    ),
    "a compiled weight with a shape that is a number": without(
        "data/aotinductor/net/weights_config.json", b'{"v": ["weight_1", 2, [1], 0]}',
        {**W, "data/weights/weight_1": saved(torch.ones(2))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.pt2"):
        opened(HOSTILE[name]).close()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("an unknown dtype", "the dtype has the unknown number 99"),
        ("a dtype that is a text", "the description gives no number for the dtype"),
        ("no metadata", "the description gives no number for the dtype"),
    ],
)
def test_a_wrong_dtype_is_named(name: str, why: str) -> None:
    with pytest.raises(cs.FormatError, match=why):
        opened(HOSTILE[name]).close()


def test_a_message_names_the_tensor() -> None:
    with pytest.raises(
        cs.FormatError, match=r"x\.pt2: the tensor net\.w: .*reaches beyond storage data/weights/weight_0"
    ):
        opened(of("net.w", entry("weight_0", (2, 4), (4, 1))))


def test_many_pickles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPORT_PICKLES", 1000)
    records = {f"data/weights/weight_{at}": saved(torch.ones(2)) for at in range(9)}
    weights = {f"w{at}": entry(f"weight_{at}", use_pickle=True) for at in range(9)}
    with opened(program({"w0": weights["w0"]}, records)) as found:
        assert found.tensor("w0").tolist() == [1, 1]
    with pytest.raises(cs.UnsafeError, match="more bytes in total than the limit of 1000"):
        opened(program(weights, records))
