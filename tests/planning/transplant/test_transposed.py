"""Matrices that a source stores transposed: nanoGPT's, under GPT-2's names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptsurgeon as cs

WIDTH = 4
SIZES = {"attn.c_attn": 3 * WIDTH, "attn.c_proj": WIDTH, "mlp.c_fc": 4 * WIDTH}
KEYS = [f"h.{n}.{module}.weight" for n in range(2) for module in SIZES]


@pytest.fixture(autouse=True)
def files() -> None:
    """``nano.pth`` has each matrix as (outputs, inputs), ``gpt.pth`` as (inputs, outputs)."""
    torch.manual_seed(0)
    weights = {key: torch.randn(WIDTH, SIZES[key[4:].removesuffix(".weight")]) for key in KEYS}
    weights["wte.weight"] = torch.randn(WIDTH, WIDTH)
    torch.save(weights, "gpt.pth")
    torch.save({key: value.t().contiguous() for key, value in weights.items()}, "nano.pth")


def notes(plan: Any) -> list[str]:
    return [note for note in plan.notes if "transpose" in note]


def transposing(*modules: str) -> list[dict[str, str]]:
    return [{"transpose": f"h.{{n}}.{module}.weight"} for module in modules]


@pytest.mark.parametrize("policy", ["init", "overlap", "interpolate"])
def test_a_policy_for_other_shapes_that_takes_a_transposed_matrix_is_noted(policy: str) -> None:
    (note,) = notes(cs.transplant("nano.pth", "gpt.pth", on_mismatch=[policy]))
    assert note.startswith("4 matrices look transposed")
    assert "- {transpose: 'h.*.attn.c_attn.weight'}" in note
    assert note.endswith(
        "square matrices in the same layers may be transposed, too: h.0.attn.c_proj.weight, h.1.attn.c_proj.weight"
    )


def test_the_error_for_other_shapes_proposes_to_transpose(ckpt: Any) -> None:
    failed = ckpt("transplant", "nano.pth", "gpt.pth", "-o", "out.pth")
    assert failed.code
    assert "{transpose: 'h.*.attn.c_attn.weight'}" in " ".join(failed.err.split())


def test_a_square_matrix_that_operations_forget_is_noted() -> None:
    operations = transposing("attn.c_attn", "mlp.c_fc")
    for plan in (
        cs.transplant("nano.pth", "gpt.pth", operations=operations), cs.rename("nano.pth", operations=operations)
    ):  # fmt: skip
        (note,) = notes(plan)
        assert note.startswith("2 square matrices are not transposed, although operations transpose all other matrices")
        assert "- {transpose: 'h.*.attn.c_proj.weight'}" in note


def test_if_all_are_transposed_or_others_are_not_nothing_is_said() -> None:
    assert not notes(cs.transplant("nano.pth", "gpt.pth", operations=transposing(*SIZES)))
    assert not notes(cs.rename("nano.pth", operations=transposing("mlp.c_fc")))
    permuting = [{"permute": f"h.{{n}}.{module}.weight", "dims": [1, 0]} for module in SIZES]
    assert not notes(cs.rename("nano.pth", operations=permuting))
    assert len(notes(cs.rename("nano.pth", operations=[permuting[0], permuting[2]]))) == 1
    apart = [
        {"copy": "h.{n}.attn.c_proj", "into": ["h.{n}.o"]}, {"transpose": "h.{n}.o.weight"},
        {"copy": "h.{n}.o", "into": ["h.{n}.attn.c_proj"]}, *transposing("attn.c_attn", "mlp.c_fc"),
    ]  # fmt: skip
    assert not notes(cs.rename("nano.pth", operations=apart))
    assert not notes(cs.transplant("gpt.pth", "gpt.pth"))


def test_the_advice_on_stacked_matrices_names_the_dimensions() -> None:
    """Without them, the operation is refused for a tensor of three dimensions."""
    for name, sides in (("a.pth", (3, 4)), ("b.pth", (4, 3))):
        torch.save({"layers.0.w": torch.ones(2, *sides), "b": torch.ones(2)}, name)
    with pytest.raises(cs.PlanError, match="shape mismatch") as caught:
        cs.transplant("a.pth", "b.pth")
    said = "{transpose: 'layers.*.w', dims: [1, 2]}"
    assert said in str(caught.value.hint)
    assert said in " ".join(cs.merge(["a.pth", "b.pth"], method="linear", weights=[1, 1], on_mismatch=["skip"]).notes)
    cs.transplant("a.pth", "b.pth", operations=[{"transpose": "layers.*.w", "dims": [1, 2]}])


@pytest.mark.parametrize("policy", ["skip", "overlap"])
def test_a_merge_with_a_transposed_model_is_noted(policy: str) -> None:
    plan = cs.merge(["gpt.pth", "nano.pth"], method="linear", weights=[1, 1], on_mismatch=[policy])
    (note,) = notes(plan)
    assert note.startswith("4 matrices look transposed")
    assert "Transpose with ckpt rename --operations" in note
    assert not notes(cs.merge(["gpt.pth", "gpt.pth"], method="linear", weights=[1, 1], on_mismatch=[policy]))
