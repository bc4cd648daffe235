"""Files of PaddlePaddle: as it wrote them (`make oracle-paddle`), and files that break rules."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "paddle"
NAMES = ("2.pdparams", "3.pdparams", "4.pdparams", "named.pdparams", "slices.pdparams", "static.pdparams", "adam.pdopt")
NOTE = "PaddlePaddle stores the weights of linear layers as (inputs, outputs), torch as (outputs, inputs)"
SPLIT = "UnpackBigParamInfor@@"
ONES = np.ones(3, "f4")


def opened(data: bytes, name: str = "x.pdparams") -> cs.Checkpoint:
    Path(name).write_bytes(data)
    return cs.open_checkpoint(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_the_values_that_paddle_reads(name: str) -> None:
    shapes = json.loads((GOLDEN / "shapes.json").read_text())["shapes"]
    wanted = {key.partition("/")[2]: one for key, one in shapes.items() if key.startswith(f"{name}/")}
    with cs.open_checkpoint(str(GOLDEN / name)) as found, np.load(GOLDEN / "values.npz") as values:
        assert (set(found), found.format) == (set(wanted), "paddle")
        for key, (dtype, shape) in wanted.items():
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape)
            stored = found.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert stored.tobytes() == values[f"{name}/{key}"].tobytes(), key
        assert found.notes == (NOTE,)


def test_slices_are_one_tensor_in_every_verb(ckpt: Any) -> None:
    sliced, whole = str(GOLDEN / "slices.pdparams"), str(GOLDEN / "4.pdparams")
    cs.apply(cs.convert(sliced), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert ckpt("diff", whole, "out.safetensors", "--values").code == 0


def test_a_file_without_entries_of_paddle_is_not_taken_for_one() -> None:
    data = pickle.dumps({"w": np.array([16256], "u2"), "b": ONES})
    with opened(data) as found:
        assert (found["w"].dtype, found.format) == ("uint16", "numpy pickle")
        assert found.notes == (
            "PaddlePaddle stores bfloat16 as uint16: 1 tensor may be of bfloat16, but the file does not say that "
            "PaddlePaddle wrote it",
        )
    with opened(data, "x.pkl") as found:
        assert found.notes == ()


def test_a_folder_or_an_archive_with_one_file_is_opened() -> None:
    Path("net").mkdir()
    Path("net/model.pdparams").write_bytes((GOLDEN / "4.pdparams").read_bytes())
    Path("net/model.pdopt").write_bytes((GOLDEN / "adam.pdopt").read_bytes())
    with zipfile.ZipFile("net.zip", "w") as archive:
        archive.write("net/model.pdparams")
    for path in ("net", "net.zip"):
        with cs.open_checkpoint(path) as found:
            assert found["0.weight"].shape == (40, 50)


def test_the_scan_knows_what_models_need(ckpt: Any) -> None:
    for name in NAMES:
        code = ckpt("scan", str(GOLDEN / name)).code
        assert code == (1 if name.startswith("static") else 0), name  # which has a call of eval


class Call:
    """An object that is pickled as a call."""

    def __init__(self, *reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


def test_only_calls_of_paddle_are_taken_for_arrays() -> None:
    others = {
        "code": Call(eval, ("ONES.sum()", {"data": ONES})), "more": Call(eval, ("data", {"data": ONES, "x": 1})),
        "three": Call(tuple, (("a", ONES, 1),)), "number": Call(tuple, ((1, ONES),)), "list": Call(tuple, ([ONES],)),
    }  # fmt: skip
    with opened(pickle.dumps({"w": ONES, "t": Call(tuple, (("name", ONES + 1),)), **others})) as found:
        assert list(found) == ["w", "t"]
        assert found.tensor("t").tolist() == [2, 2, 2]


def sliced(said: Any, **slices: Any) -> bytes:
    return pickle.dumps({**slices, SPLIT: said})


def of(names: Any, shape: Any, **slices: Any) -> bytes:
    return sliced({"w": {"OriginShape": shape, "slices": names}}, **slices)


HOSTILE: dict[str, bytes] = {
    "slices that are a list": sliced([1], a=ONES),
    "slices that are a number": sliced({"w": 1}, a=ONES),
    "no names": of([], (3,), a=ONES),
    "names that are numbers": of([1], (3,), a=ONES),
    "a slice that is missing": of(["a", "b"], (6,), a=ONES),
    "a slice that is a number": of(["a", "b"], (6,), a=ONES, b=1),
    "a slice that is not flat": of(["a"], (3, 1), a=ONES.reshape(3, 1)),
    "slices of two dtypes": of(["a", "b"], (6,), a=ONES, b=ONES.astype("f2")),
    "a slice twice": of(["a", "a"], (6,), a=ONES),
    "a slice of two tensors": sliced(
        {name: {"OriginShape": (3,), "slices": ["a"]} for name in ("v", "w")}, a=ONES
    ),
    "a tensor that is there whole": of(["a"], (3,), a=ONES, w=ONES),
    "too few elements": of(["a"], (2, 2), a=ONES),
    "no shape": of(["a"], None, a=ONES),
    "a negative size": of(["a"], (-3, -1), a=ONES),
    "sizes whose product overflows": of(["a"], (1 << 40, 1 << 40), a=ONES),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.pdparams"):
        opened(HOSTILE[name]).close()
