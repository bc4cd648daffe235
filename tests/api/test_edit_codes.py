"""Patterns and rules speak of the names of quantised tensors; their stored parts follow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.plan.plan import Plan

from ..helpers.zoo import BY_NAME, ZOO, Quantised

NAMES = ("fp8-block", "int4-packed", "gptq", "awq", "mlx", "bnb-nf4", "nvfp4-packed", "int8", "hqq")
ATTENTION = "model.layers.0.self_attn"
QUERY = f"{ATTENTION}.q_proj"


def parts(path: Path, module: str = QUERY) -> dict[str, bytes]:
    """The bytes of the tensors of a module, by the rest of their keys."""
    found = load_file(path / "model.safetensors")
    return {
        key.removeprefix(module): one.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for key, one in found.items()
        if key.startswith(f"{module}.")
    }


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_is_chosen_by_its_name(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].folder(tmp_path / "m", 0)
    cs.apply(cs.filter(model, include=["**.q_proj.weight"]), tmp_path / "chosen")
    assert parts(tmp_path / "chosen") == parts(model)
    assert len(cs.open_checkpoint(tmp_path / "chosen")) == len(parts(model))
    cs.apply(cs.filter(model, exclude=["**.q_proj.weight"]), tmp_path / "left")
    assert set(cs.open_checkpoint(tmp_path / "left")) == {key for key in cs.open_checkpoint(model) if QUERY not in key}


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_a_tensor_get_names_that_fit_its_new_one(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].folder(tmp_path / "m", 0)
    cs.apply(cs.rename(model, map=["**.q_proj.weight=**.wq.weight"]), tmp_path / "out")
    assert parts(tmp_path / "out", f"{ATTENTION}.wq") == parts(model)
    assert not parts(tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok


def test_the_first_rule_that_matches_the_tensor_or_its_part_counts(tmp_path: Path) -> None:
    model = BY_NAME["int4-packed"].folder(tmp_path / "m", 0)
    rules = ["**.q_proj.weight=**.wq.weight", "**.self_attn.**=**.attn.**"]
    names = [step.key for step in cs.rename(model, map=rules).steps]
    assert f"{ATTENTION}.wq.weight_scale" in names
    assert "model.layers.0.attn.k_proj.weight_scale" in names
    with pytest.raises(cs.PatternError, match="never applies: earlier rules rename all of its 1 key"):
        cs.rename(model, map=rules[::-1])


def test_a_name_that_no_part_can_have_is_an_error(tmp_path: Path) -> None:
    model = BY_NAME["gptq"].folder(tmp_path / "m", 0)
    with pytest.raises(cs.PlanError, match=r"its parts have no names that fit model\.layers\.0\.self_attn\.q") as error:
        cs.rename(model, map=["**.q_proj.weight=**.q"])
    assert error.value.exit_code == 4
    assert error.value.hint == "Give the tensor a name that ends with .weight."


READ: dict[str, Callable[[Path], int]] = {
    "inspect": lambda model: len(cs.inspect(model, include=["**.q_proj.weight"]).tensors),
    "diff": lambda model: len(cs.diff(model, model, include=["**.q_proj.weight"]).same),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", READ)
def test_what_reads_takes_the_name_too(verb: str, name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].folder(tmp_path / "m", 0)
    assert READ[verb](model) == len(parts(model))


def test_a_transplant_takes_the_name(tmp_path: Path) -> None:
    first, second = (BY_NAME["gptq"].folder(tmp_path / one, seed) for seed, one in enumerate("ab"))
    plan: Plan = cs.transplant(first, second, include=["**.q_proj.weight"])
    cs.apply(plan, tmp_path / "out")
    assert parts(tmp_path / "out") == parts(first)
    assert parts(tmp_path / "out", f"{ATTENTION}.k_proj") == parts(second, f"{ATTENTION}.k_proj")


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("model", ZOO, ids=lambda one: one.name)
def test_a_dtype_never_keeps_codes_without_a_word(model: Quantised, dtype: str, tmp_path: Path) -> None:
    """It is an error if it would change a part; if no part is of another dtype, a note says that codes stay."""
    folder = model.folder(tmp_path / "m", 0)
    number = len(cs.open_checkpoint(folder).codes.tensors)
    with suppress(cs.PlanError):  # exit 4
        notes = [note for note in cs.convert(folder, dtype=dtype).notes if "does not apply" in note]
        assert len(notes) == 1
        assert f"the dtype {dtype} does not apply to {number} quantised" in notes[0]
    assert not any("does not apply" in note for note in cs.convert(folder, dtype="keep").notes)
