"""Models in different layouts: errors and notes name both, and the conversion of one of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "flux"
TWO = ["a.safetensors", "b.safetensors"]
HINT = (
    "a.safetensors has the layout diffusers of flux, b.safetensors the layout bfl: first run ckpt convert "
    "b.safetensors --layout diffusers -o NAME.safetensors."
)


@pytest.fixture(autouse=True)
def _files() -> None:
    shutil.copy(RECORDED / "diffusers.safetensors", TWO[0])
    shutil.copy(RECORDED / "bfl.safetensors", TWO[1])


@pytest.mark.parametrize("on_missing", ["error", "skip", "any"])
def test_a_merge_of_two_layouts_names_the_conversion(on_missing: str) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.merge(TWO, method="linear", weights=[1, 1], on_missing=on_missing)
    assert error.value.hint == HINT


def test_a_model_in_another_folder_is_named_with_its_path() -> None:
    Path("models").mkdir()
    there = str(shutil.move(TWO[1], f"{Path('models').resolve()}/b.safetensors"))
    with pytest.raises(cs.PlanError) as error:
        cs.merge([TWO[0], there], method="linear", weights=[1, 1])
    assert error.value.hint == HINT.replace("b.safetensors", there)
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(TWO[0], there, layout="keep")
    assert there in error.value.hint


def test_an_average_and_a_transplant_of_two_layouts_name_the_conversion() -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.average(TWO)
    assert error.value.hint == HINT
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(TWO[1], TWO[0], layout="keep")
    assert error.value.hint == HINT


@pytest.mark.parametrize("large", [True, False])
def test_a_comparison_of_two_layouts_notes_it(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.api.diff.LARGE", 0 if large else 1 << 40)
    said = f"the names differ, since {HINT}".rstrip(".")
    assert said in cs.diff(*TWO).notes
    assert not any("layout" in note for note in cs.diff(TWO[0], TWO[0]).notes)


def test_a_merge_in_which_no_tensor_is_in_two_models_is_an_error() -> None:
    save_file({"x.weight": torch.ones(2, 2)}, "x.safetensors")
    with pytest.raises(cs.PlanError, match="there is nothing to merge: no tensor is in two of the models"):
        cs.merge([TWO[0], "x.safetensors"], method="linear", weights=[1, 1], on_missing="any")
