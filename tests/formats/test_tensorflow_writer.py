"""Checkpoints of TensorFlow that ckptsurgeon writes: read again here, and by TensorFlow (``make oracle-tensorflow``)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.tf.writer import TensorFlowWriter

GOLDEN = Path(__file__).parents[2] / "fixtures/golden/tensorflow"
RECORD = json.loads((GOLDEN / "record.json").read_text())
WRITTEN = GOLDEN / "written"
FILES = ("checkpoint", "model.data-00000-of-00001", "model.index", "alphabet.txt", "flags.txt")
CONFIG = "model: {name: deepspeech, alphabet: alphabet.txt, n_hidden: 8, n_input: 4, n_context: 1}\n"


def save(state: dict[str, torch.Tensor], output: str = "out", **options: Any) -> cs.Receipt:
    torch.save(state, "source.pth")
    return cs.apply(cs.convert("source.pth"), output, to="tensorflow", **options)


def for_coqui(output: str = "coqui") -> cs.Receipt:
    """Take Coqui's checkpoint into PyTorch's layout, and write it for Coqui again."""
    shutil.copy(GOLDEN / "stt/alphabet.txt", "alphabet.txt")
    Path("dst.yaml").write_text(CONFIG)
    cs.apply(cs.transplant(GOLDEN / "stt", "dst.yaml", strict=True), "torch/", force=True)
    return cs.apply(cs.rename("torch", ruleset="coqui-stt-tensorflow"), output, to="tensorflow", force=True)


def test_every_dtype_comes_back() -> None:
    names = sorted(TensorFlowWriter.dtypes)
    state = {f"of.{name}": torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    state |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}
    save(state)
    with cs.open_checkpoint("out") as found:
        assert found.format == "tensorflow"
        assert found.root == "model"
        assert sorted(found) == sorted(state)
        for key, value in state.items():
            assert found.tensor(key).dtype == value.dtype
            assert found.tensor(key).shape == value.shape
            assert torch.equal(
                found.tensor(key).contiguous().flatten().view(torch.uint8), value.flatten().view(torch.uint8)
            )
    cs.verify("out").raise_if_failed()


@pytest.mark.long
@pytest.mark.parametrize("size", ["", "20KB"])
def test_many_tensors_need_many_blocks_of_the_index(size: str) -> None:
    state = {f"layers.{i}.{part}": torch.full((3,), float(i)) for i in range(1500) for part in ("weight", "bias")}
    save(state, **({"max_shard_size": size} if size else {}))
    shards = len(list(Path("out").glob("model.data-*")))
    assert shards == (2 if size else 1)
    with cs.open_checkpoint("out") as found:
        assert sorted(found) == sorted(state)
        assert all(torch.equal(found.tensor(key), value) for key, value in state.items())
    cs.verify("out").raise_if_failed()


def test_tied_tensors_are_written_twice() -> None:
    weight = torch.randn(3, 2)
    save({"a.weight": weight, "b.weight": weight})
    with cs.open_checkpoint("out") as found:
        assert torch.equal(found.tensor("a.weight"), weight)
        assert torch.equal(found.tensor("b.weight"), weight)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["a/b"], "a/b would be read as model.a.b"),
        (["x", "x.Adam"], "x.Adam would be read as optimizer.adam_m.x"),
        (["global_step"], "global_step would be read as optimizer.global_step"),
        ([".a"], ".a would be read as model.a"),
        (["", "b"], "the empty key cannot be stored in a TensorFlow checkpoint"),
    ],
)
def test_a_key_that_would_be_read_as_another_is_refused(keys: list[str], named: str) -> None:
    with pytest.raises(cs.OutputError) as error:
        save({key: torch.tensor(1.0) for key in keys})
    assert named in str(error.value)
    assert error.value.hint.endswith("or leave it out with ckpt filter --exclude.")  # convert has another --exclude
    assert not os.path.exists("out")


def test_coqui_s_checkpoint_is_written_as_tensorflow_read_it() -> None:
    """The bytes are those of the golden files, from which Coqui's own code loaded its graph."""
    for_coqui()
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(WRITTEN, ignore_errors=True)
        WRITTEN.mkdir()
        for name in FILES:
            shutil.copy(Path("coqui") / name, WRITTEN)
    assert sorted(os.listdir("coqui")) == sorted((*FILES, "ckptsurgeon.json"))
    for name in FILES:
        assert (Path("coqui") / name).read_bytes() == (WRITTEN / name).read_bytes(), name


def test_coqui_loads_every_variable_and_computes_the_same() -> None:
    found = RECORD["written"]
    assert sorted(found["loaded"]) == sorted(set(RECORD["stt"]["variables"]) - {"learning_rate"})
    assert found["initialised"] == ["learning_rate"]
    assert np.array_equal(found["logits"], RECORD["stt"]["logits"])


def test_what_is_written_for_coqui_is_said() -> None:
    notes = for_coqui().notes
    assert any("state of an Adam optimizer before its first step" in note for note in notes)
    assert not any("has no alphabet.txt" in note for note in notes)
    shutil.move("torch/model.safetensors", "alone.safetensors")
    receipt = cs.apply(cs.rename("alone.safetensors", ruleset="coqui-stt-tensorflow"), "alone", to="tensorflow")
    assert any("folder has no alphabet.txt" in note for note in receipt.notes)


def test_pytorch_s_layout_is_not_coqui_s() -> None:
    for_coqui()
    receipt = cs.apply(cs.convert("torch/model.safetensors"), "out", to="tensorflow")
    assert any("ckpt rename --ruleset coqui-stt-tensorflow" in note for note in receipt.notes)


@pytest.mark.long
def test_coqui_s_network_is_not_split() -> None:
    for_coqui()
    with pytest.raises(cs.OutputError, match="Write one file, without max_shard_size"):
        cs.apply(cs.convert("coqui"), "out", to="tensorflow", max_shard_size="3KB")


@pytest.mark.costly
@pytest.mark.parametrize("name", ["model.data-00000-of-00001", "model.index", "checkpoint"])
def test_a_changed_byte_outside_the_tensors_fails_verify(name: str) -> None:
    for_coqui()
    path = Path("coqui") / name
    data = bytearray(path.read_bytes())
    data[-1 if name != "model.index" else 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(cs.CheckpointError):
        cs.verify("coqui").raise_if_failed()


@pytest.mark.parametrize("left", ["best_dev_checkpoint", "checkpoint"])
def test_the_output_is_what_is_read_from_a_folder_of_training(left: str) -> None:
    """Texts that name the checkpoints of a training are replaced, with force; its checkpoints never are."""
    shutil.copytree(GOLDEN / "stt", "out")
    os.remove(Path("out") / ({"best_dev_checkpoint", "checkpoint"} - {left}).pop())
    with pytest.raises(cs.OutputError, match=f"out holds a checkpoint: {left}"):
        save({"a": torch.ones(2)})
    save({"a": torch.ones(2)}, force=True)
    assert (Path("out") / "best_dev-1000.index").exists()
    with cs.open_checkpoint("out") as found:
        assert list(found) == ["a"]


def test_a_tensor_with_a_name_of_the_training_state_is_refused() -> None:
    for_coqui()
    with cs.open_checkpoint("coqui") as found:
        state = {key: found.tensor(key) for key in found}
    with pytest.raises(cs.OutputError, match="global_step belongs to Coqui STT's training state"):
        save({**state, "global_step": torch.zeros(2)})


@pytest.mark.long
def test_an_index_that_could_not_be_read_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATH_CHARACTERS", limits.PATH_CHARACTERS // 8)
    state = {f"{i:06}.{'x' * 7000}": torch.zeros(1) for i in range(1200)}
    with pytest.raises(cs.OutputError, match="1,?200 tensors with names of 8.* are too many for tensorflow"):
        save(state)


def test_an_earlier_output_is_replaced_as_a_whole() -> None:
    save({f"k{i}": torch.ones(3000) for i in range(4)}, max_shard_size="24KB")
    assert len(list(Path("out").glob("model.data-*"))) == 2
    torch.save({"a": torch.ones(2)}, "source.pth")
    cs.apply(cs.convert("source.pth"), "out/", force=True)
    assert sorted(os.listdir("out")) == ["ckptsurgeon.json", "model.safetensors"]


def test_the_label_of_a_comment_is_escaped() -> None:
    Path("alphabet.txt").write_text(" \na\n\\#\nb\n")
    Path("dst.yaml").write_text(CONFIG)
    cs.apply(cs.transplant(GOLDEN / "stt", "dst.yaml", exclude="layer_6"), "torch/")
    cs.apply(cs.rename("torch", ruleset="coqui-stt-tensorflow"), "coqui", to="tensorflow")
    assert (Path("coqui") / "alphabet.txt").read_text() == " \na\n\\#\nb\n"
    assert json.loads((Path("coqui") / "flags.txt").read_text())["n_hidden"] == 8


@pytest.mark.long
def test_an_alphabet_of_another_size_is_named() -> None:
    for_coqui()
    (Path("torch") / "alphabet.txt").write_text("a\nb\n")
    plan = cs.rename("torch", ruleset="coqui-stt-tensorflow")
    assert "alphabet.txt has 2 labels, to which CTC adds a blank, but layer_6.bias has 7 values" in plan.notes
    assert any("2 labels" in note for note in cs.inspect("torch").notes)
