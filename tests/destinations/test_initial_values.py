"""Initial values that are in a file: ``init: like`` in a declaration, and deviations that must not start as zeros."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs

FRONT = {
    "module.normalize.mean": torch.arange(6.0),
    "module.normalize.std": torch.arange(6.0) + 1,
    "module.front.melmat": torch.rand(6, 4),
    "module.enc.weight": torch.zeros(4, 4),
    "module.enc.bias": torch.ones(4),
}
KEPT = ("normalize.mean", "normalize.std", "front.melmat")


@pytest.fixture(autouse=True)
def _files() -> None:
    torch.save({"state": {"model": FRONT}}, "front.pth")
    torch.save({"enc.weight": torch.full((4, 4), 3.0), "enc.bias": torch.full((4,), 3.0)}, "src.pth")
    Path("conf").mkdir()
    cs.init_config("front.pth", output="conf/dst.yaml")


@pytest.mark.long
def test_threads_that_draw_at_once_draw_what_each_draws_alone() -> None:
    """They share torch's generator; another thread's draws may not come between a seed and its values."""
    rows = {f"w{n}.weight": {"shape": [300, 1000], "init": {"normal": {"std": 0.02}}} for n in range(4)}
    Path("draw.yaml").write_text(yaml.safe_dump({"model": {"tensors": {**rows, "enc.bias": {"shape": [4]}}}}))
    cs.apply(cs.transplant("src.pth", "draw.yaml", exclude=["enc.weight"]), "alone.safetensors")

    def draw(number: int) -> bytes:
        output = f"{number}.safetensors"
        cs.apply(cs.transplant("src.pth", "draw.yaml", exclude=["enc.weight"]), output)
        return Path(output).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, range(12)))
    assert [one == Path("alone.safetensors").read_bytes() for one in found] == [True] * 12


def document(**changes: Any) -> None:
    """Change rows of the tensors, or fields of the model; None leaves one out."""
    content = yaml.safe_load(Path("conf/dst.yaml").read_text())["model"]
    for name, value in changes.items():
        rows = content["tensors"] if "." in name else content
        rows[name] = value
        if value is None:
            del rows[name]
    Path("conf/dst.yaml").write_text(yaml.safe_dump({"model": content}))


def test_init_keeps_what_a_checkpoint_does_not_show_how_to_initialise_and_says_so() -> None:
    text = Path("conf/dst.yaml").read_text()
    assert text.startswith("# tensors with init: like keep the values of front.pth")
    model = yaml.safe_load(text)["model"]
    assert (model["values"], model["root"]) == ("../front.pth", "state.model")
    assert [key for key, row in model["tensors"].items() if row["init"] == "like"] == list(KEPT)


def test_init_as_json_has_a_note_in_place_of_the_comment(ckpt: Any) -> None:
    said = ckpt("init", "front.pth", "--root", "state.model", "-o", "conf/dst.json")
    assert (said.code, "tensors with init: like keep the values of front.pth" in said.err) == (0, True)
    assert "keep the values" not in ckpt("init", "front.pth", "--root", "state.model", "-o", "conf/other.yaml").err


def test_kept_values_are_those_of_the_file_and_a_source_of_their_own(ckpt: Any) -> None:
    plan = cs.transplant("src.pth", "conf/dst.yaml")
    assert plan.counts == {"copied": 2, "kept": 3}
    assert [(one.name, one.role) for one in plan.sources] == [("src.pth", "source"), ("front.pth", "initial")]
    cs.apply(plan, "out.pth")
    made = torch.load("out.pth")
    assert all(made[key].equal(FRONT[f"module.{key}"]) for key in KEPT)
    assert made["enc.weight"].eq(3).all()
    done = ckpt("verify", "out.pth")
    assert "5, compared with the sources" in done.out
    shown = ckpt("transplant", "src.pth", "conf/dst.yaml", "-n", "--explain", "normalize.std").out
    assert "front.pth: normalize.std (6) float32" in " ".join(shown.split())
    assert "no source has it" in shown
    assert "the destination's own value" not in shown


def test_a_plan_in_a_file_opens_the_kept_values_again_and_refuses_changed_ones() -> None:
    plan = cs.Plan.from_json(cs.transplant("src.pth", "conf/dst.yaml").to_json())
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["normalize.std"].equal(FRONT["module.normalize.std"])
    torch.save({"state": {"model": {**FRONT, "more": torch.ones(1)}}}, "front.pth")
    with pytest.raises(cs.PlanError, match=r"front.pth has changed"):
        cs.apply(plan, "again.pth")


def test_the_file_of_values_is_never_replaced() -> None:
    torch.save({key.removeprefix("module."): value for key, value in FRONT.items()}, "src.pth")
    plan = cs.transplant("src.pth", "conf/dst.yaml")
    assert [one.name for one in plan.sources] == ["src.pth"]
    with pytest.raises(cs.OutputError, match="front.pth is an input"):
        cs.apply(plan, "front.pth", force=True)


def test_what_fills_a_grown_tensor_is_an_input_too() -> None:
    torch.save({"enc.weight": torch.ones(4, 4), "normalize.std": torch.full((3,), 9.0)}, "src.pth")
    plan = cs.transplant(
        "src.pth", "conf/dst.yaml", on_mismatch="normalize.std=overlap", reinit=["normalize.mean", "front"]
    )
    assert [one.name for one in plan.sources] == ["src.pth", "front.pth"]
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["normalize.std"].tolist() == [9, 9, 9, 4, 5, 6]
    torch.save({"state": {"model": {**FRONT, "module.normalize.std": -torch.ones(6)}}}, "front.pth")
    with pytest.raises(cs.PlanError, match=r"front.pth has changed"):
        cs.apply(cs.Plan.from_json(plan.to_json()), "again.pth")


def test_verify_finds_a_kept_value_that_was_changed(ckpt: Any) -> None:
    cs.apply(cs.transplant("src.pth", "conf/dst.yaml"), "out.safetensors")
    raw = bytearray(Path("out.safetensors").read_bytes())
    at = raw.find(FRONT["module.normalize.std"].numpy().tobytes())
    raw[at : at + 4] = b"\0\0\0\1"
    Path("out.safetensors").write_bytes(raw)
    done = ckpt("verify", "out.safetensors")
    assert done.code == 1
    assert "normalize.std" in done.out


def test_a_source_goes_before_kept_values_and_then_the_file_is_no_input() -> None:
    torch.save({key.removeprefix("module."): value + 1 for key, value in FRONT.items()}, "all.pth")
    plan = cs.transplant("all.pth", "conf/dst.yaml")
    assert [one.name for one in plan.sources] == ["all.pth"]
    assert plan.counts == {"copied": 5}


def test_excluded_and_reinitialised_tensors_are_kept_too() -> None:
    torch.save({key.removeprefix("module."): value + 1 for key, value in FRONT.items()}, "all.pth")
    plan = cs.transplant("all.pth", "conf/dst.yaml", exclude=["normalize"], reinit=["front"])
    cs.apply(plan, "out.pth")
    made = torch.load("out.pth")
    assert all(made[key].equal(FRONT[f"module.{key}"]) for key in KEPT)
    assert {step.key: (step.reason, step.rule) for step in plan.steps if step.reason} == {
        "normalize.mean": ("excluded", "--exclude normalize"), "normalize.std": ("excluded", "--exclude normalize"),
        "front.melmat": ("reinit", "--reinit front"),
    }  # fmt: skip


def test_where_a_source_gives_a_part_the_rest_is_kept() -> None:
    torch.save({"enc.weight": torch.ones(4, 4), "normalize.mean": torch.full((2,), 7.0)}, "part.pth")
    cs.apply(cs.transplant("part.pth", "conf/dst.yaml", on_mismatch="pad"), "out.pth")
    assert torch.load("out.pth")["normalize.mean"].tolist() == [7, 7, 2, 3, 4, 5]


def test_kept_values_take_the_declared_dtype_and_the_names_of_tied_tensors() -> None:
    document(
        **{"normalize.mean": {"shape": [6], "dtype": "float16", "init": "like"}, "tied": [["normalize.mean", "m"]]}
    )
    with pytest.raises(cs.ConfigError, match="'m' is not a key of the field 'tensors'"):
        cs.load_target("conf/dst.yaml")
    torch.save({"a": torch.arange(3.0), "e.weight": torch.ones(2, 2)}, "like.pth")
    Path("t.yaml").write_text("""
model:
  values: like.pth
  tensors:
    a: {shape: [3], dtype: float16, init: like}
    b: {shape: [3], dtype: float16, init: like}
    e.weight: {shape: [2, 2], init: ones}
  tied: [[a, b]]
""")
    torch.save({"e.weight": torch.ones(2, 2)}, "src.pth")
    cs.apply(cs.transplant("src.pth", "t.yaml"), "out.pth")
    made = torch.load("out.pth")
    assert made["b"].tolist() == [0, 1, 2]
    assert made["a"].dtype == torch.float16
    assert made["a"].data_ptr() == made["b"].data_ptr()


def test_parts_of_quantised_tensors_are_kept_together() -> None:
    coded = {"l.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "l.weight_scale": torch.ones(1)}
    torch.save({**coded, "l.bias": torch.ones(4)}, "q.pth")
    cs.init_config("q.pth", output="q.yaml")
    torch.save({"l.bias": torch.zeros(4)}, "src.pth")
    plan = cs.transplant("src.pth", "q.yaml")
    assert plan.counts == {"copied": 1, "kept": 2}
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["l.weight"].float().eq(1).all()


def test_tensors_in_memory_have_no_file_to_keep_values_of() -> None:
    text = cs.init_config({"enc.weight": torch.ones(2, 2), "melmat": torch.ones(2, 2)})
    assert yaml.safe_load(text)["model"]["tensors"]["melmat"] == {"shape": [2, 2], "dtype": "float32"}
    Path("dst.yaml").write_text(text)
    with pytest.raises(cs.PlanError, match="does not say how to initialise melmat"):
        cs.transplant({"enc.weight": torch.ones(2, 2)}, "dst.yaml")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"values": None},
            "the tensor front.melmat has 'init: like', but the field 'values' is missing. Add values: FILE, a checkpoint with the values of this tensor",
        ),
        (
            {"values": 3},
            "the tensor front.melmat has 'init: like', but the field 'values' is 3, not a path. Add values: FILE",
        ),
        (
            {"root": 3},
            "dst.yaml: the field 'root' is 3, not the path of a state dict",
        ),
        (
            {"root": "state"},
            r"dst.yaml: values: .*has no tensors in .*front.pth. Choose one of its state dicts: state.model",
        ),
        (
            {"x.mel": {"shape": [7], "init": "like"}},
            r"x.mel should get its values from another file .*front.pth has no tensor",
        ),
        ({"values": "gone.pth"}, "gone.pth does not exist"),
        (
            {"normalize.mean": {"shape": [7], "init": "like"}},
            r"normalize.mean \(init: like\) has the shape \(7\), but the shape \(6\) in .*front.pth",
        ),
        (
            {key: {"shape": [1], "init": "ones"} for key in KEPT},
            "the fields values and root are only used for tensors with init: like, and no tensor has init: like",
        ),
    ],
)
def test_what_cannot_be_kept_is_an_error(changes: dict[str, Any], why: str) -> None:
    document(**changes)
    with pytest.raises(cs.CheckpointError, match=why):
        cs.load_target("conf/dst.yaml")


# Deviations.


@pytest.mark.costly
@pytest.mark.parametrize("init", ["zeros", 0, {"constant": {"val": 0}}])
def test_a_deviation_that_would_start_as_zeros_is_an_error(init: object, ckpt: Any) -> None:
    document(**{"normalize.std": {"shape": [6], "init": init}})
    done = ckpt("transplant", "src.pth", "conf/dst.yaml", "-o", "out.pth")
    assert done.code == 4
    expected = "initialises normalize.std with zeros, but models divide by standard deviations and variances"
    assert expected in " ".join(done.err.split())
    assert not Path("out.pth").exists()
    assert cs.transplant("src.pth", "conf/dst.yaml", reinit=["normalize.std"]).counts["initialised"] == 1
    torch.save({"enc.weight": torch.ones(4, 4), "normalize.std": torch.ones(6)}, "src.pth")
    assert cs.transplant("src.pth", "conf/dst.yaml").counts == {"copied": 2, "initialised": 1, "kept": 2}


def test_a_deviation_that_a_constructor_leaves_at_zeros_is_one_too() -> None:
    Path("zero_net.py").write_text("""
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = torch.nn.Linear(4, 4)
        self.bn = torch.nn.BatchNorm1d(2)
        self.log_std = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("std", torch.zeros(4))
""")
    Path("net.yaml").write_text("model: {_target_: zero_net.Net}\n")
    with pytest.raises(cs.PlanError, match="initialises std with zeros"):
        cs.transplant("src.pth", "net.yaml")
    assert cs.transplant("src.pth", "net.yaml", reinit=["std"]).counts == {"copied": 2, "initialised": 7}


def tied(first: str, second: str) -> str:
    torch.save({"a": torch.ones(2), "b": torch.full((2,), 5.0)}, "two.pth")
    rows = "".join(f"    {key}: {{shape: [2], init: {init}}}\n" for key, init in (("a", first), ("b", second)))
    Path("tied.yaml").write_text(f"model:\n  values: two.pth\n  tied: [[a, b]]\n  tensors:\n{rows}")
    return "tied.yaml"


def test_tied_keys_keep_one_value() -> None:
    with pytest.raises(cs.ConfigError, match=r"b is tied to a, but has other values in two.pth"):
        cs.transplant("src.pth", tied("like", "like"))
    with pytest.raises(cs.ConfigError, match=r"b is tied to a, but has a different initialiser"):
        cs.transplant("src.pth", tied("zeros", "like"))
