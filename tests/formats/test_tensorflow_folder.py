"""Which of the checkpoints of a folder that TensorFlow left is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs

from ..helpers.tensorflow_files import BEST, refused


def test_the_best_checkpoint_of_a_folder_comes_before_the_last(stt: Path) -> None:
    """Its text names it by a path of the machine that trained it."""
    assert 'path: "/home/coqui/en/best_dev-1000"' in (stt / "best_dev_checkpoint").read_text()
    with cs.open_checkpoint(stt) as checkpoint:
        weights = {f"{BEST}.index", f"{BEST}.data-00000-of-00001"}
        assert {file.name for file in checkpoint.files} == {*weights, "best_dev_checkpoint"}
        assert checkpoint.notes == (f"read {BEST}, as best_dev_checkpoint says; also in the folder: train-1200",)
    (stt / "best_dev_checkpoint").unlink()
    with cs.open_checkpoint(stt) as checkpoint:
        assert "read train-1200, as checkpoint says" in checkpoint.notes[0]
    (stt / "best_dev_checkpoint").write_text("")
    with cs.open_checkpoint(stt) as checkpoint:
        said = "read train-1200, as checkpoint says, since best_dev_checkpoint names no checkpoint; also in the folder:"
        assert checkpoint.notes[0].startswith(said)


@pytest.mark.parametrize(
    "path", ["best_dev-1000", "/a/b/best_dev-1000", "C:\\\\\\\\x\\\\\\\\best_dev-1000", "best\\\\137dev-1000"]
)
def test_what_a_text_names_is_taken_by_its_last_part(stt: Path, path: str) -> None:
    text = path.encode().decode("unicode_escape") if "\\" in path else path
    (stt / "best_dev_checkpoint").write_text(f'model_checkpoint_path: "{text}"\nall_model_checkpoint_paths: "x"\n')
    with cs.open_checkpoint(stt) as checkpoint:
        assert checkpoint.files[0].name == f"{BEST}.index"


def test_a_folder_with_neither_text_is_an_error_that_names_what_is_there(stt: Path) -> None:
    """Coqui's training would start from scratch, and say so in a line among hundreds."""
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    said = refused(stt)
    assert "stt has no valid best_dev_checkpoint or checkpoint" in said
    assert "Pass one of these: stt/best_dev-1000, stt/train-1200." in said


def test_a_folder_without_a_checkpoint_is_an_error(stt: Path) -> None:
    for file in stt.glob("*-1*"):
        file.unlink()
    assert "best_dev_checkpoint refers to best_dev-1000, but the file best_dev-1000.index is missing" in refused(stt)
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    assert "stt contains no checkpoint" in refused(stt)


def test_another_file_called_checkpoint_is_none_of_tensorflow_s() -> None:
    Path("run").mkdir()
    Path("run/checkpoint").write_text("epoch 3\n")
    torch.save({"w": torch.ones(2)}, "run/model.pth")
    with cs.open_checkpoint("run") as checkpoint:
        assert checkpoint.format != "tensorflow"


def test_an_index_beside_weights_of_torch_does_not_hide_them(stt: Path) -> None:
    """As in repositories that hold a model for both."""
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    torch.save({"w": torch.ones(2)}, stt / "pytorch_model.bin")
    with cs.open_checkpoint(stt) as checkpoint:
        assert list(checkpoint) == ["w"]
