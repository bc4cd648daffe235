"""TensorFlow's checkpoints as TensorFlow itself wrote them (``make oracle-tensorflow``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.tf.bundle import slice_key

from ..helpers.tensorflow_files import BEST, GOLDEN, field, write

RECORD = json.loads((GOLDEN / "record.json").read_text())


def values_of(name: str) -> dict[str, Any]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.mark.parametrize("name", ["best_dev", "train"])
@pytest.mark.parametrize("named", ["index", "prefix"])
def test_every_variable_has_the_values_that_tensorflow_says(name: str, named: str) -> None:
    expected = values_of(name)
    assert len(expected) == 40
    number = {"best_dev": 1000, "train": 1200}[name]
    path = GOLDEN / "stt" / f"{name}-{number}{'.index' if named == 'index' else ''}"
    found: dict[str, torch.Tensor] = {}
    for root, slot in (
        ("model", ""),
        ("optimizer.adam_m", ".Adam"),
        ("optimizer.adam_v", ".Adam_1"),
        ("optimizer", ""),
    ):
        with cs.open_checkpoint(path, root) as checkpoint:
            assert checkpoint.format == "tensorflow"
            found |= {f"{key}{slot}": checkpoint.tensor(key) for key in checkpoint}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key].numpy(), value), key
        assert str(found[key].dtype) == f"torch.{value.dtype}"


def test_model_variables_are_the_state_dict_and_the_rest_is_beside_it(ckpt: Any) -> None:
    shown = json.loads(ckpt("inspect", GOLDEN / "stt", "--json").out)
    assert (shown["root"], len(shown["tensors"]), shown["other_roots"]) == ("model", 12, [])
    extras = {extra["key"]: extra for extra in shown["extras"]}
    assert extras.keys() == {"optimizer", "flags.txt", "alphabet.txt"}
    assert extras["optimizer"]["type"] == "dict of 6, 28 tensors in it"
    assert extras["alphabet.txt"]["value"] == (GOLDEN / "stt/alphabet.txt").read_text()


@pytest.mark.long
def test_the_header_is_read_without_torch_or_numpy() -> None:
    code = (
        "import sys, ckptsurgeon as cs; c = cs.open_checkpoint(sys.argv[1]);"
        "assert len(c) == 12 and not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(GOLDEN / "stt")], check=True)


def test_several_data_files() -> None:
    with cs.open_checkpoint(GOLDEN / "shards") as checkpoint:
        data = [f"model.data-0000{i}-of-00002" for i in range(2)]
        assert [file.name for file in checkpoint.files] == ["model.index", *data, "checkpoint"]
        for i in range(4):
            assert torch.equal(checkpoint.tensor(f"layer_{i}.weights"), torch.full((2, 3), float(i)))
    cs.apply(cs.convert(GOLDEN / "shards"), "out.safetensors")
    assert cs.verify("out.safetensors").ok


def test_slices_of_partitioned_variables_are_put_together() -> None:
    with cs.open_checkpoint(GOLDEN / "slices") as checkpoint:
        assert {key: info.shape for key, info in checkpoint.items()} == {"by_0": (5, 5), "by_1": (5, 200)}
        for key in checkpoint:
            assert checkpoint.tensor(key).numpy().tobytes().hex() == RECORD["slices"][key]
    cs.apply(cs.convert(GOLDEN / "slices"), "out.pth")
    assert torch.load("out.pth", weights_only=True)["by_1"].numpy().tobytes().hex() == RECORD["slices"]["by_1"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(0, "80"), (63, "bf"), (-1, "7f"), (-64, "40"), (64, "c040"), (-65, "3fbf"), (8191, "dfff"), (1 << 20, "f0100000"[:8]),
     (2**63 - 1, "ffc07fffffffffffffff"), (-(2**63), "003f8000000000000000")],
)  # fmt: skip
def test_slices_are_found_under_ordered_codes(number: int, code: str) -> None:
    """tensorflow/core/lib/strings/ordered_code_test.cc"""
    key = slice_key(b"a\x00\xff", ((number, -1),))
    assert key == b"\x00a\x00\xff\xff\x00\x00\x01\x01\x01" + bytes.fromhex(code) + b"\x7f"


def test_every_type_and_what_holds_no_numbers() -> None:
    with cs.open_checkpoint(GOLDEN / "kinds/kinds") as checkpoint:
        for key, info in checkpoint.items():
            plain = checkpoint.tensor(key).contiguous().reshape(-1).view(torch.uint8) if info.numel else torch.empty(0)
            assert bytes(plain.tolist()).hex() == RECORD["kinds"][key], key
            assert info.dtype == {"scalar": "float32", "empty": "float32"}.get(key, key)
        assert len(checkpoint) == len(RECORD["kinds"])
        assert [(extra.key, extra.type) for extra in checkpoint.extras] == [("text", "tensorflow.string")]


def test_object_graphs_of_tensorflow_2() -> None:
    with cs.open_checkpoint(GOLDEN / "objects") as checkpoint:
        assert list(checkpoint) == ["model.kernel", "model.layers.0"]
        assert torch.equal(checkpoint.tensor("model.kernel"), torch.ones(2, 3))
        assert [extra.key for extra in checkpoint.extras] == ["_CHECKPOINTABLE_OBJECT_GRAPH", "optimizer"]


def test_averages_of_weights_are_a_state_dict_of_their_own() -> None:
    ones = np.ones((2,), "f4")
    write("x", {"w": ones, "w/ExponentialMovingAverage": 2 * ones, "w/Adam": ones, "loss/Adam": ones})
    with cs.open_checkpoint("x") as checkpoint:
        assert list(checkpoint) == ["loss.Adam", "w"]
        assert checkpoint.passed == ("model_ema",)
    with cs.open_checkpoint("x", "model_ema") as checkpoint:
        assert torch.equal(checkpoint.tensor("w"), torch.full((2,), 2.0))


def test_moments_of_a_variable_that_is_saved_under_other_names_are_the_optimizer_s() -> None:
    """Coqui's releases were trained with cuDNN, whose LSTM is one opaque variable while it trains."""
    ones = np.ones((2,), "f4")
    write("x", {"w": ones, "cudnn_lstm/opaque_kernel/Adam": ones, "cudnn_lstm/opaque_kernel/Adam_1": ones})
    assert list(cs.open_checkpoint("x")) == ["w"]
    assert list(cs.open_checkpoint("x", "optimizer.adam_v")) == ["cudnn_lstm.opaque_kernel"]


def test_what_lies_beside_is_carried_when_it_is_asked_for(ckpt: Any) -> None:
    done = ckpt("convert", GOLDEN / "stt", "--keep-extras", "-o", "x.pth")
    assert "not copied to the output: optimizer" in " ".join(done.err.split())
    carried = torch.load("x.pth", weights_only=True)
    assert carried.keys() == {"model", "flags.txt", "alphabet.txt"}
    assert carried["flags.txt"]["n_hidden"] == 8
    assert len(carried["model"]) == 12


def test_what_a_big_endian_machine_wrote() -> None:
    header = field(1, 1) + field(2, 1) + field(3, field(1, 1))
    write("x", {"w": np.arange(3, dtype=">f4")}, header)
    cs.apply(cs.convert("x"), "out.safetensors")
    with cs.open_checkpoint("out.safetensors") as checkpoint:
        assert checkpoint.tensor("w").tolist() == [0.0, 1.0, 2.0]


def test_an_output_is_never_one_of_its_files(stt: Path, ckpt: Any) -> None:
    for name in (f"{BEST}.index", f"{BEST}.data-00000-of-00001"):
        before = (stt / name).read_bytes()
        done = ckpt("convert", stt, "-o", stt / name, "--to", "safetensors", "--force")
        assert (done.code, (stt / name).read_bytes()) == (5, before)


def test_a_checkpoint_that_changed_since_the_plan_is_refused(stt: Path, ckpt: Any) -> None:
    Path("plan.json").write_text(ckpt("convert", stt, "-n", "--json").out)
    (stt / "best_dev_checkpoint").unlink()
    done = ckpt("apply", "plan.json", "-o", "out.pth")
    assert (done.code, "has changed since the plan" in done.err) == (4, True)
