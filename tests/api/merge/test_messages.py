"""What a merge says of commands that are wrong: what, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Run = Callable[..., Any]

PAIR = ("a.safetensors", "b.safetensors")
LINEAR = (*PAIR, "-m", "linear")
TIES = (*PAIR, "-m", "ties", "--base", "base.safetensors")

BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "one weight": ((*LINEAR, "--weights", "1"), 2, "weight has 1 value for 2 models. Give one value for each model."),
    "three weights": ((*LINEAR, "--weights", "1,2,3"), 2, "weight has 3 values for 2 models. Give one value for each model."),
    "no weights": (LINEAR, 2, "linear needs a weight for each model. Give it with --weights 0.5,0.5."),
    "no weights for three models": (
        (*PAIR, "base.safetensors", "-m", "linear"), 2, "Give it with --weights 0.33,0.33,0.33."
    ),
    "a weight that is none": ((*LINEAR, "--weights", "1,x"), 2, "--weights 1,x is not a list of numbers."),
    "a weight that is no number": ((*LINEAR, "--weights", "nan,1"), 2, "weight is nan, not a finite number."),
    "weights twice": ((*LINEAR, "--weights", "1,1", "--param", "weight=1,1"), 2, "the parameter weight is given twice."),
    "opposite weights": (
        (*LINEAR, "--weights", "1,-1"), 4,
        "head: the weights sum to zero (1, -1), and normalize divides by their sum. Give other weights, or --param normalize=false",
    ),
    "a truth that is none": (
        (*LINEAR, "--weights", "1,1", "--param", "normalize=maybe"), 2, "normalize is 'maybe', not true or false."
    ),
    "a density beyond one": ((*TIES, "--param", "density=1.5"), 2, "density is 1.5; it must be from 0 to 1."),
    "a misspelled parameter": ((*TIES, "--param", "densty=0.5"), 2, "Did you mean density?"),
    "a misspelled method": ((*PAIR, "-m", "tise"), 2, "there is no merge method tise. Did you mean ties?"),
    "a method in capitals": ((*PAIR, "-m", "TIES"), 2, "Did you mean ties?"),
    "one model": (("a.safetensors", "-m", "slerp"), 2, "the method slerp needs at least 2 models, but there is 1. Give more models."),
    "too many models": (
        (*PAIR, "base.safetensors", "-m", "slerp"), 2, "the method slerp merges at most 2 models, but there are 3. Use another method, or give fewer models."
    ),
    "too many models with a base that is merged": (
        (*PAIR, "--base", "base.safetensors", "-m", "slerp"), 2, "merges at most 2 models, but there are 3 with the base. Use"
    ),
    "no base": ((*PAIR, "-m", "ties"), 2, "the method ties needs the base, from which the other models were trained. Give it with --base."),
    "a base that is not there": ((*PAIR, "-m", "ties", "--base", "no.safetensors"), 3, "no.safetensors does not exist."),
    "a wrapped model": (
        ("a.safetensors", "wrapped.safetensors", "-m", "linear", "--weights", "1,1"), 4,
        "wrapped.safetensors lacks head, layers.0.w; a.safetensors lacks 2 tensors. Use --unwrap: ",
    ),
    "a wrapped first model": (
        ("wrapped.safetensors", "a.safetensors", "-m", "linear", "--weights", "1,1"), 4, "Use --unwrap: "
    ),
    "a model of another kind": (
        ("a.safetensors", "other.safetensors", "-m", "linear", "--weights", "1,1"), 4,
        "other.safetensors lacks head, layers.0.w; a.safetensors lacks 1 tensor. Merge models of the same architecture",
    ),
    "a wrapped model of another kind": (
        ("a.safetensors", "partly.safetensors", "-m", "linear", "--weights", "1,1"), 4, "Merge models of the same architecture"
    ),
    "adapters and their base": (
        ("lora.safetensors", "lora.safetensors", "-m", "knots_ties", "--base", "base.safetensors"), 4,
        "lora.safetensors is an adapter. First add each adapter to its base: ckpt lora merge BASE lora.safetensors -o FULL/.",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def files() -> None:
    shapes = {"layers.0.w": (4, 4), "head": (6, 4)}
    for seed, name in enumerate((*PAIR, "base.safetensors", "wrapped.safetensors", "partly.safetensors")):
        draw = np.random.default_rng(seed)
        prefix = "module." if name[0] in "wp" else ""
        kept = {key: shape for key, shape in shapes.items() if name[0] != "p" or key == "head"}
        save_file({prefix + key: draw.standard_normal(shape, "f4") for key, shape in kept.items()}, name)
    save_file({"encoder.x": np.zeros((4, 4), "f4")}, "other.safetensors")
    factors = {"A": np.zeros((2, 4), "f4"), "B": np.zeros((4, 2), "f4")}
    save_file({f"layers.0.w.lora_{one}.weight": value for one, value in factors.items()}, "lora.safetensors")


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_with_what_to_do(what: str, ckpt: Run) -> None:
    command, code, says = BAD[what]
    done = ckpt("merge", *command, "-o", "out.safetensors")
    assert done.code == code
    assert says in done.err.replace("\n", " ")
    assert not Path("out.safetensors").exists()


def test_unwrap_does_what_the_error_says(ckpt: Run) -> None:
    assert (
        ckpt("merge", "a.safetensors", "wrapped.safetensors", *LINEAR[2:], "--weights", "1,1", "--unwrap", "-n").code
        == 0
    )


def test_weights_for_all_stand_beside_those_by_pattern(ckpt: Run) -> None:
    assert ckpt("merge", *LINEAR, "--weights", "1,3", "--param", "weight:head=1,0", "-o", "o.safetensors").code == 0
    made, a, b = (load_file(name) for name in ("o.safetensors", *PAIR))
    assert np.array_equal(made["head"], a["head"])
    np.testing.assert_allclose(made["layers.0.w"], 0.25 * a["layers.0.w"] + 0.75 * b["layers.0.w"], atol=1e-6)
    done = ckpt("merge", *LINEAR, "--weights", "1,1", "--param", "weight:**=1,0", "-n")
    assert (done.code, "weight is given twice" in done.err) == (2, True)


def test_a_tensor_too_large_for_the_memory_is_named_once(ckpt: Run) -> None:
    for name in PAIR:
        save_file({"w": np.zeros((2, 1_000_000), "f4")}, name)
    done = ckpt("merge", *PAIR, "-m", "nuslerp", "--weights", "1,1", "--param", "nuslerp_flatten=false", "--param",
                "nuslerp_row_wise=true", "--memory", "17MB", "-o", "o.safetensors")  # fmt: skip
    assert (done.code, done.err.count("w: computing this tensor takes 52.2 MB of memory")) == (4, 1), done


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            "merge_method: [linear]",
            "merge_method is ['linear'], not the name of a method. Run ckpt merge --list for the names of the methods.",
        ),
        ("merge_method:", "merge_method is None, not the name of a method."),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a.safetensors, layer_range: [-1, 2]}]}]",
            "layer_range is [-1, 2], below the first layer. Count from 0",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a.safetensors, layer_range: [0, -1]}]}]",
            "layer_range is [0, -1], below the first layer. Count from 0",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(recipe: str, says: str, ckpt: Run) -> None:
    Path("r.yaml").write_text(recipe + "\n")
    done = ckpt("merge", "r.yaml", "-o", "out/")
    assert (done.code, says in done.err.replace("\n", " ")) == (2, True), done.err
