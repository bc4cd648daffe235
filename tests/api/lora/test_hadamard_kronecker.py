"""LoHa and LoKr become LoRA: the best products of low rank, with PEFT itself as the judge of what their changes are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs

from ...helpers.adapters import State

NAMES = ("first", "second")


class Net(nn.Module):
    """Two linear layers, one wider than high and one higher than wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 36), nn.Linear(36, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of both layers."""
        return self.second(torch.tanh(self.first(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


CASES: dict[str, Callable[[], Any]] = {
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5),
    "loha-wide": lambda: peft.LoHaConfig(r=8, alpha=5),
    "loha-patterns": lambda: peft.LoHaConfig(r=2, alpha=5, rank_pattern={"second": 4}, alpha_pattern={"^first": 7}),
    "lokr-w1-w2": lambda: peft.LoKrConfig(r=8, alpha=5),
    "lokr-w2ab": lambda: peft.LoKrConfig(r=2, alpha=5, decompose_factor=2),
    "lokr-w1ab-w2ab": lambda: peft.LoKrConfig(r=1, alpha=5, decompose_both=True),
    "lokr-patterns": lambda: peft.LoKrConfig(
        r=2, alpha=5, decompose_factor=2, rank_pattern={"second": 4}, alpha_pattern={"^first": 7}
    ),
}


def trained(config: Any, folder: str = "one") -> tuple[Any, dict[str, Any]]:
    """Save an adapter with random values in a folder; return the model, and the change of each layer."""
    config.target_modules, config.init_weights = list(NAMES), False
    torch.manual_seed(1)
    model = peft.get_peft_model(net(), config).eval()
    model.save_pretrained(folder)
    return model, deltas(model)


def loaded(folder: str) -> Any:
    return peft.PeftModel.from_pretrained(net(), folder).eval()


def deltas(model: Any) -> dict[str, Any]:
    layers = {name: model.base_model.model.get_submodule(name) for name in NAMES}
    return {name: one.get_delta_weight("default").detach().double().numpy() for name, one in layers.items()}


def best(matrix: Any, rank: int) -> Any:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def norm(matrix: Any) -> float:
    return float(np.linalg.norm(matrix))


def test_the_cases_have_all_of_peft_s_factorisations() -> None:
    found = set()
    for number, make in enumerate(CASES.values()):
        trained(make(), f"case{number}")
        keys = load_file(f"case{number}/adapter_model.safetensors")
        for layer in NAMES:
            found.add(" ".join(sorted(key.rpartition(".")[2].partition("_")[2] for key in keys if f".{layer}." in key)))
    assert found == {"w1_a w1_b w2_a w2_b", "w1 w2", "w1 w2_a w2_b"}


@pytest.mark.parametrize("name", CASES)
def test_the_full_rank_gives_the_same_outputs(name: str) -> None:
    model, changes = trained(CASES[name]())
    receipt = cs.apply(cs.lora_convert("one", to="peft", rank=1000), "out/")
    other, x = loaded("out"), torch.randn(7, 24)
    assert json.loads(Path("out/adapter_config.json").read_text())["peft_type"] == "LORA"
    assert all(norm(change) > 0.01 for change in changes.values())
    assert torch.allclose(model(x), other(x), atol=1e-5)
    assert not torch.allclose(net()(x), other(x), atol=1e-3)
    assert all(fit.error < 1e-7 for fit in receipt.fits)
    assert cs.verify("out").ok


@pytest.mark.parametrize("name", CASES)
def test_a_lower_rank_is_the_best_one(name: str) -> None:
    _, changes = trained(CASES[name]())
    plan = cs.lora_convert("one", to="peft", rank=2)
    receipt = cs.apply(plan, "out/")
    found = deltas(loaded("out"))
    fits = {fit.key.split(".")[2]: fit for fit in receipt.fits}
    for layer, change in changes.items():
        wanted = best(change, 2)
        assert norm(found[layer] - wanted) <= 2e-6 * norm(change)
        assert fits[layer].error == pytest.approx(norm(change - wanted) / norm(change), rel=1e-5, abs=1e-7)
        assert fits[layer].shape == change.shape
    assert cs.verify("out").ok
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert cs.verify("out", plan="plan.json").ok


@pytest.mark.parametrize("name", CASES)
def test_an_energy_chooses_the_smallest_rank(name: str) -> None:
    _, changes = trained(CASES[name]())
    receipt = cs.apply(cs.lora_convert("one", to="peft", energy=0.9), "out/")
    for fit in receipt.fits:
        squares = np.linalg.svd(changes[fit.key.split(".")[2]], compute_uv=False) ** 2
        shares = np.cumsum(squares) / squares.sum()
        assert fit.rank == int(np.searchsorted(shares, 0.9)) + 1
        assert fit.error**2 <= 0.1 + 1e-6
    assert {fit.rank for fit in cs.apply(cs.lora_convert("one", to="peft", rank=1, energy=0.9), "two/").fits} == {1}


@pytest.mark.parametrize("name", ["loha", "lokr-w2ab"])
def test_changed_factors_fail_the_verification(name: str) -> None:
    trained(CASES[name]())
    cs.apply(cs.lora_convert("one", to="peft", rank=2), "out/")
    plan = cs.lora_convert("one", to="peft", rank=2)
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    changed = load_file("out/adapter_model.safetensors")
    changed["base_model.model.first.lora_A.weight"][0] *= 1.01
    save_file(changed, "changed.safetensors")
    assert not cs.verify("changed.safetensors", plan="plan.json").ok


def matrices(seed: int, **shapes: tuple[int, ...]) -> State:
    made = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=made) for key, shape in shapes.items()}


LOHA = {"hada_w1_a": (36, 3), "hada_w1_b": (3, 24), "hada_w2_a": (36, 3), "hada_w2_b": (3, 24)}
LYCORIS: dict[str, dict[str, tuple[int, ...]]] = {
    "loha": LOHA,
    "w1-w2": {"lokr_w1": (6, 4), "lokr_w2": (6, 6)},
    "w1-w2ab": {"lokr_w1": (6, 4), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 6)},
    "w1ab-w2": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2": (6, 6)},
    "w1ab-w2ab": {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 6)},
}


def change_of(tensors: State, alpha: float) -> Any:
    """The change by the formulas of LyCORIS."""
    ranks = [value.shape[1] for key, value in tensors.items() if key.endswith("_a")]
    one = {key: value.double() for key, value in tensors.items()}
    method = "hada" if "hada_w1_a" in one else "lokr"
    first, second = (
        one[f"{method}_{side}"] if f"{method}_{side}" in one else one[f"{method}_{side}_a"] @ one[f"{method}_{side}_b"]
        for side in ("w1", "w2")
    )
    whole = first * second if method == "hada" else torch.kron(first, second)
    return (whole * (alpha / ranks[0] if ranks else 1.0)).numpy()


def saved(tensors: State, path: str = "a.safetensors", module: str = "lora_unet_first", alpha: float = 1.5) -> None:
    save_file(
        {f"{module}.{key}": value for key, value in tensors.items()} | {f"{module}.alpha": torch.tensor(alpha)}, path
    )


@pytest.mark.parametrize("rank", [3, 1000])
@pytest.mark.parametrize("name", LYCORIS)
def test_files_of_lycoris_become_kohya_s_lora(name: str, rank: int) -> None:
    tensors = matrices(2, **LYCORIS[name])
    saved(tensors)
    receipt = cs.apply(cs.lora_convert("a.safetensors", to="kohya", rank=rank), "out.safetensors")
    found = load_file("out.safetensors")
    up, down = (found[f"lora_unet_first.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
    scale, change = float(found["lora_unet_first.alpha"]) / len(down), change_of(tensors, 1.5)
    wanted = best(change, rank)
    assert norm(scale * up @ down - wanted) <= 2e-6 * norm(change)
    assert receipt.fits[0].error == pytest.approx(norm(change - wanted) / norm(change), rel=1e-5, abs=1e-7)
    assert cs.verify("out.safetensors").ok


def test_a_base_gives_the_names_of_modules() -> None:
    tensors = matrices(2, **LOHA)
    saved(tensors)
    save_file({f"unet.{key}": value for key, value in net().state_dict().items()}, "base.safetensors")
    cs.apply(cs.lora_convert("a.safetensors", to="peft", base="base.safetensors", rank=9), "out/")
    found = peft.PeftModel.from_pretrained(net(), "out").base_model.model.first.get_delta_weight("default")
    assert norm(found.detach().double().numpy() - change_of(tensors, 1.5)) <= 2e-6 * norm(change_of(tensors, 1.5))
    saved(matrices(2, **{**LOHA, "hada_w1_b": (3, 20), "hada_w2_b": (3, 20)}))
    with pytest.raises(cs.PlanError, match=r"is 36 x 20, but the weight unet.first.weight is \(36, 24\)"):
        cs.lora_convert("a.safetensors", to="peft", base="base.safetensors", rank=9)
    save_file({"unet.first.weight": torch.zeros(36, 6, 2, 2)}, "base.safetensors")
    saved(tensors)
    with pytest.raises(cs.PlanError) as error:
        cs.lora_convert("a.safetensors", to="peft", base="base.safetensors", rank=9)
    assert "Convolutions cannot be converted" in error.value.hint


def test_modules_of_lora_beside_them_are_copied() -> None:
    tensors = matrices(2, **LOHA)
    saved(tensors)
    lora = matrices(3, **{"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)})
    extra = {f"lora_unet_other.{key}": value for key, value in lora.items()}
    save_file(load_file("a.safetensors") | extra, "both.safetensors")
    plan = cs.lora_convert("both.safetensors", to="kohya", rank=2)
    note = "1 module is a LoRA already and keeps its rank (2); ckpt lora resize makes it smaller"
    assert sum(one.endswith(note) for one in plan.notes) == 1
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    assert all(torch.equal(found[key], value) for key, value in extra.items())
    cs.apply(cs.lora_convert("both.safetensors", to="kohya", exclude="lora_unet_first"), "less.safetensors")
    assert {key.split(".")[0] for key in load_file("less.safetensors")} == {"lora_unet_other"}
    lora4 = matrices(4, **{"lora_down.weight": (4, 8), "lora_up.weight": (8, 4)})
    more = {f"lora_unet_third.{key}": value for key, value in lora4.items()}
    save_file(load_file("both.safetensors") | more, "three.safetensors")
    notes = cs.lora_convert("three.safetensors", to="kohya", rank=2).notes
    assert any("2 modules are LoRA already and keep their ranks (2, 4)" in note for note in notes)
    save_file(extra | more, "two.safetensors")
    assert not any("already" in note for note in cs.lora_convert("two.safetensors", to="kohya").notes)


BAD: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "inner": ({**LOHA, "hada_w2_b": (2, 24)}, r"lora_unet_first.hada_w2_b \(2, 24\)"),
    "outer": ({**LOHA, "hada_w2_b": (3, 23)}, r"lora_unet_first.hada_w2_b \(3, 23\)"),
    "zero": ({"lokr_w1_a": (6, 0), "lokr_w1_b": (0, 4), "lokr_w2": (6, 6)}, r"lora_unet_first.lokr_w1_a \(6, 0\)"),
    "ranks": (
        {"lokr_w1_a": (6, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (6, 3), "lokr_w2_b": (3, 6)},
        r"lokr_w2_a \(6, 3\)",
    ),
    "convolution": ({"lokr_w1": (6, 4), "lokr_w2": (6, 6, 3, 3)}, r"lora_unet_first.lokr_w2 \(6, 6, 3, 3\)"),
    "missing": ({key: LOHA[key] for key in ("hada_w1_a", "hada_w1_b", "hada_w2_a")}, "lacks hada_w2_b"),
    "both": ({"lokr_w1": (6, 4), "lokr_w1_a": (6, 2), "lokr_w2": (6, 6)}, "also has lora_unet_first.lokr_w1_a"),
    "lora too": ({**LOHA, "lora_down.weight": (2, 24)}, "also has lora_unet_first.lora_down.weight"),
    "scalar": ({**LOHA, "hada_w1_a": ()}, r"lora_unet_first.hada_w1_a \(\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_do_not_fit_are_named(name: str) -> None:
    shapes, message = BAD[name]
    saved(matrices(2, **shapes))
    with pytest.raises(cs.FormatError, match=message):
        cs.lora_convert("a.safetensors", to="kohya", rank=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["hada_w2_b", "lokr_w2"])
def test_values_that_are_not_finite_are_named(key: str, value: float) -> None:
    tensors = matrices(2, **LYCORIS["loha" if key.startswith("hada") else "w1-w2"])
    tensors[key][1, 1] = value
    saved(tensors)
    with pytest.raises(cs.PlanError, match=f"lora_unet_first.{key} has values that are not finite"):
        cs.lora_convert("a.safetensors", to="kohya", energy=0.9)
    with pytest.raises(cs.PlanError, match=f"lora_unet_first.{key} has values that are not finite"):
        cs.apply(cs.lora_convert("a.safetensors", to="kohya", rank=2), "out.safetensors")


def test_a_zero_change_has_the_rank_one() -> None:
    for name, zero in (("loha", "hada_w2_b"), ("w1-w2", "lokr_w1")):
        tensors = matrices(2, **LYCORIS[name])
        saved({**tensors, zero: torch.zeros_like(tensors[zero])})
        receipt = cs.apply(cs.lora_convert("a.safetensors", to="kohya", energy=0.9), f"{name}.safetensors")
        assert (receipt.fits[0].rank, receipt.fits[0].error) == (1, 0.0)
        assert not load_file(f"{name}.safetensors")["lora_unet_first.lora_up.weight"].any()


def test_16_bits_stay_16_bits() -> None:
    tensors = {key: value.bfloat16() for key, value in matrices(2, **LOHA).items()}
    saved(tensors)
    cs.apply(cs.lora_convert("a.safetensors", to="kohya", rank=2), "out.safetensors")
    found = load_file("out.safetensors")
    assert found["lora_unet_first.lora_up.weight"].dtype == torch.bfloat16
    assert cs.verify("out.safetensors").ok


def test_wrong_arguments_and_kinds_are_errors(ckpt: Any) -> None:
    saved(matrices(2, **LOHA))
    for options, message in (
        ({}, "no size given"),
        ({"rank": 0}, "rank=0 is not a valid rank"),
        ({"energy": 2.0}, "energy=2.0 is not a number"),
    ):
        with pytest.raises(cs.ConfigError, match=message):
            cs.lora_convert("a.safetensors", to="kohya", **options)
    with pytest.raises(cs.PlanError, match="memory"):
        cs.lora_convert("a.safetensors", to="kohya", rank=2, memory="1KB")
    with pytest.raises(cs.PlanError, match="must convert it to a LoRA first"):
        cs.lora_convert("a.safetensors", to="mlx", rank=2)
    saved(matrices(3, **{"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}), "lora.safetensors")
    with pytest.raises(cs.ConfigError, match="is already a LoRA: rank"):
        cs.lora_convert("lora.safetensors", to="kohya", rank=1)
    for ending, kind in (("hada_t1", "LoHa"), ("lokr_t2", "LoKr")):
        saved({**matrices(2, **LOHA), ending: torch.ones(3, 3, 3, 3)}, "t.safetensors")
        done = ckpt("lora", "convert", "t.safetensors", "--to", "kohya", "--rank", "2", "-o", "o.safetensors")
        assert done.code == 2
        assert f"is a {kind} with a Tucker (CP) decomposition" in " ".join(done.err.split())
    saved({"oft_blocks": torch.ones(2, 3, 3)}, "oft.safetensors")
    done = ckpt("lora", "convert", "oft.safetensors", "--to", "kohya", "--rank", "2", "-o", "o.safetensors")
    assert done.code == 2
    assert "ckpt lora extract with the merged model" in " ".join(done.err.split())


def test_configurations_that_do_not_fit_are_errors() -> None:
    trained(peft.LoHaConfig(r=3, alpha=5))
    said = json.loads(Path("one/adapter_config.json").read_text())
    for change, message in (
        ({"r": 4}, "has the rank 4 for first"),
        ({"alpha": "x"}, ": alpha has 'x', which is not a finite number"),
        ({"alpha": None}, ": alpha has None, which is not a finite number"),
    ):
        Path("one/adapter_config.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(cs.ConfigError, match=message):
            cs.lora_convert("one", to="peft", rank=2)
    del said["alpha"]
    Path("one/adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(cs.ConfigError, match="the field alpha is missing"):
        cs.lora_convert("one", to="peft", rank=2)


def test_peft_s_oft_names_the_way_through_the_base() -> None:
    torch.manual_seed(1)
    config = peft.OFTConfig(oft_block_size=4, target_modules=list(NAMES))
    peft.get_peft_model(net(), config).save_pretrained("oft")
    with pytest.raises(cs.ConfigError) as error:
        cs.lora_convert("oft", to="peft", rank=2)
    assert "ckpt lora merge; ckpt lora extract" in error.value.hint


def test_the_command_prints_what_is_lost(ckpt: Any) -> None:
    saved(matrices(2, **LOHA))
    done = ckpt("lora", "convert", "a.safetensors", "--to", "kohya", "--rank", "2", "-o", "o.safetensors")
    assert done.code == 0
    assert "lost" in done.out + done.err
    done = ckpt(
        "lora", "convert", "a.safetensors", "--to", "kohya", "--energy", "0.9", "--rank", "4", "-o", "p.safetensors",
        "--json",
    )  # fmt: skip
    assert {"key", "shape", "rank", "error"} == set(json.loads(done.out)["modules"][0])


def test_a_dora_is_refused() -> None:
    saved({**matrices(2, **LOHA), "dora_scale": torch.ones(36, 1)})
    with pytest.raises(cs.PlanError, match="is a DoRA") as error:
        cs.lora_convert("a.safetensors", to="kohya", rank=2)
    assert "with LyCORIS, which trained it" in error.value.hint


def test_a_plan_and_a_recipe_make_the_same(ckpt: Any) -> None:
    saved(matrices(2, **LYCORIS["w1ab-w2"]))
    plan = cs.lora_convert("a.safetensors", to="kohya", rank=2, energy=0.99, memory="64MB")
    cs.apply(plan, "out.safetensors")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    fields = {"verb": "lora convert", "adapter": "a.safetensors", "to": "kohya", "rank": 2, "energy": 0.99}
    Path("recipe.yaml").write_text(json.dumps({**fields, "memory": "64MB"}))
    for given in ("plan.json", "recipe.yaml"):
        assert ckpt("apply", given, "-o", "again.safetensors", "--force").code == 0
        assert Path("again.safetensors").read_bytes()[-200:] == Path("out.safetensors").read_bytes()[-200:]


EDITS: dict[str, dict[str, Any]] = {
    "rank": {"rank": 1000}, "no rank": {"rank": 0}, "kind": {"of": "kronecker 1 1"}, "unknown kind": {"of": "kronecker 9"},
    "difference": {"of": "difference"}, "transposed": {"transposed": True}, "scale": {"scale": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edited_plans_that_do_not_fit_are_errors(name: str, ckpt: Any) -> None:
    saved(matrices(2, **LOHA))
    data = cs.lora_convert("a.safetensors", to="kohya", rank=2).to_json()
    rows = [row for row in data["steps"] if "factor" in row]
    assert [row["factor"]["of"] for row in rows] == ["hadamard"] * 2
    for row in rows:
        row["factor"].update(EDITS[name])
    Path("plan.json").write_text(json.dumps(data))
    done = ckpt("apply", "plan.json", "-o", "o.safetensors")
    assert done.code == 4, done
    assert not Path("o.safetensors").exists()


@pytest.mark.parametrize(("component", "said"), [
    ("unet", {"unet.r": 3, "unet.lora_alpha": 12}),
    ("unet", {"unet.r": 3, "unet.alpha": 12, "unet.peft_type": "LOHA"}),
    ("", {"r": 3, "alpha": 12, "peft_type": "LOHA"}),
])  # fmt: skip
def test_metadata_of_diffusers_give_the_scale(component: str, said: dict[str, Any]) -> None:
    name = f"{component}.first".removeprefix(".")
    tensors = matrices(2, **LOHA)
    named = {f"{name}.{key}": value for key, value in tensors.items()}
    save_file(named, "a.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    plan = cs.lora_convert("a.safetensors", to="kohya", rank=9, component="unet")
    cs.apply(plan, "out.safetensors")
    found = load_file("out.safetensors")
    up, down = (found[f"lora_unet_first.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
    change = change_of(tensors, 12)
    scale = float(found["lora_unet_first.alpha"]) / len(down)
    assert norm(scale * up @ down - change) <= 2e-6 * norm(change)
    assert not any("no alpha" in note for note in plan.notes)
    save_file(named, "a.safetensors", {"lora_adapter_metadata": json.dumps({**said, f"{component}.r".strip("."): 4})})
    with pytest.raises(cs.ConfigError, match="has the rank 4"):
        cs.lora_convert("a.safetensors", to="kohya", rank=9, component="unet")


def test_without_an_alpha_a_note_names_the_scale() -> None:
    w1_w2 = {f"unet.other.{key}": value for key, value in matrices(3, **LYCORIS["w1-w2"]).items()}
    save_file({f"unet.first.{key}": value for key, value in matrices(2, **LOHA).items()} | w1_w2, "a.safetensors")
    plan = cs.lora_convert("a.safetensors", to="kohya", rank=9)
    assert any(note.endswith("no alpha: scale 1 is assumed for 1 module") for note in plan.notes)
    save_file(w1_w2, "a.safetensors")
    assert not any("no alpha" in note for note in cs.lora_convert("a.safetensors", to="kohya", rank=9).notes)


def test_other_verbs_say_that_metadata_are_of_a_loha() -> None:
    said = {"r": 3, "alpha": 12, "peft_type": "LOHA"}
    tensors = {f"first.{key}": value for key, value in matrices(2, **LOHA).items()}
    save_file(tensors, "a.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(cs.ConfigError, match=r"has the peft_type .LOHA.; only LORA can be used here"):
        cs.lora_resize("a.safetensors", rank=2)
    del said["alpha"]
    save_file(tensors, "a.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(cs.ConfigError, match="damaged: .*alpha is missing"):
        cs.lora_convert("a.safetensors", to="kohya", rank=2)


OTHERS: dict[str, dict[str, tuple[int, ...]]] = {
    "convolution": {"lokr_w1": (2, 2), "lokr_w2": (4, 4, 3, 3)},
    "tucker": {**LOHA, "hada_t1": (3, 3, 3, 3), "hada_t2": (3, 3, 3, 3)},
    "tucker of lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3)},
    "diff": {"diff": (8, 8), "diff_b": (8,)},
    "dora": {**LOHA, "dora_scale": (1, 24)},
    "unknown": {**LOHA, "scalar": ()},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prefix", ["lora_unet_", "unet."])
def test_excluded_modules_may_be_of_any_kind(prefix: str, name: str) -> None:
    tensors = {f"{prefix}first.{key}": value for key, value in matrices(2, **LOHA).items()}
    save_file(tensors, "first.safetensors")
    others = {f"{prefix}other.{key}": value for key, value in matrices(3, **OTHERS[name]).items()}
    save_file(tensors | others, "a.safetensors")
    with pytest.raises((cs.ConfigError, cs.FormatError), match=f"{prefix}other") as error:
        cs.lora_convert("a.safetensors", to="kohya", rank=2)
    assert "--exclude" in error.value.hint or name == "unknown"
    plan = cs.lora_convert("a.safetensors", to="kohya", rank=2, exclude=f"{prefix}other")
    assert {key for _, key in plan.unexpected} == set(others)
    cs.apply(plan, "out.safetensors")
    cs.apply(cs.lora_convert("first.safetensors", to="kohya", rank=2), "wanted.safetensors")
    found, wanted = load_file("out.safetensors"), load_file("wanted.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    with pytest.raises(cs.PlanError, match="no module of .* is left"):
        cs.lora_convert("a.safetensors", to="kohya", rank=2, exclude="**")
    with pytest.raises(cs.PatternError):
        cs.lora_convert("a.safetensors", to="kohya", rank=2, exclude=[f"{prefix}other", "nothing"])


def test_a_convolution_is_named() -> None:
    saved(matrices(2, **OTHERS["convolution"]))
    with pytest.raises(cs.FormatError, match=r"is a convolution, .* lora_unet_first.lokr_w2 \(4, 4, 3, 3\)"):
        cs.lora_convert("a.safetensors", to="kohya", rank=2)


def test_peft_s_keys_need_the_configuration() -> None:
    for make in (lambda: peft.LoHaConfig(r=3, alpha=5), lambda: peft.LoKrConfig(r=8, alpha=5)):
        trained(make())
        save_file(load_file("one/adapter_model.safetensors"), "a.safetensors")
        with pytest.raises(cs.ConfigError, match=r"are PEFT's, but its folder has no adapter_config.json"):
            cs.lora_convert("a.safetensors", to="peft", rank=2)


@pytest.mark.parametrize("name", ["unet.first", "first", "diffusion_model.first"])
def test_a_base_is_compared_with_dotted_names(name: str) -> None:
    saved(matrices(2, **LOHA), module=name)
    save_file(matrices(3, **{"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}), "lora.safetensors")
    weights = net().state_dict()
    save_file(weights, "base.safetensors")
    plan = cs.lora_convert("a.safetensors", to="kohya", base="base.safetensors", rank=2, component="unet")
    assert (
        plan.to_json()["steps"]
        == (cs.lora_convert("a.safetensors", to="kohya", rank=2, component="unet").to_json()["steps"])
    )
    for weight, message in (
        ((36, 20), r"is 36 x 24, but the weight first.weight is \(36, 20\)"),
        ((36, 6, 2, 2), "24"),
    ):
        save_file({"first.weight": torch.zeros(weight)}, "base.safetensors")
        with pytest.raises(cs.PlanError, match=message) as error:
            cs.lora_convert("a.safetensors", to="kohya", base="base.safetensors", rank=2, component="unet")
        assert ("Convolutions cannot be converted" in error.value.hint) == (len(weight) == 4)
    save_file({"third.weight": torch.zeros(36, 24)}, "base.safetensors")
    with pytest.raises(cs.PlanError, match="has none of its 1 module"):
        cs.lora_convert("a.safetensors", to="kohya", base="base.safetensors", rank=2, component="unet")


def test_a_base_is_compared_with_peft_s_modules() -> None:
    trained(peft.LoKrConfig(r=2, alpha=5))
    save_file({**net().state_dict(), "first.weight": torch.zeros(36, 20)}, "base.safetensors")
    with pytest.raises(cs.PlanError, match=r"the change of first of the adapter .* is 36 x 24"):
        cs.lora_convert("one", to="peft", base="base.safetensors", rank=2)
    save_file({"first.weight": torch.zeros(36, 24)}, "base.safetensors")
    with pytest.raises(cs.PlanError, match="has 1 module that base.safetensors lacks: second"):
        cs.lora_convert("one", to="peft", base="base.safetensors", rank=2)


@pytest.mark.parametrize("name", LYCORIS)
def test_the_memory_is_checked_before_an_energy_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(matrices(2, **LYCORIS[name]))
    monkeypatch.setattr("ckptsurgeon.engine.compute.extracting_lora.composed_values", None)
    with pytest.raises(cs.PlanError, match=r"singular values of first, .* the limit is 1.0 kB"):
        cs.lora_convert("a.safetensors", to="kohya", energy=0.9, memory="1KB")


@pytest.mark.parametrize(("make", "kind", "key"), [
    (lambda: peft.LoHaConfig(r=3, alpha=3), "LORA", "hada_w1_a"),
    (lambda: peft.LoHaConfig(r=3, alpha=3), "LOKR", "hada_w1_a"),
    (lambda: peft.LoKrConfig(r=3, alpha=3), "LOHA", "lokr_w1"),
    (lambda: peft.LoraConfig(r=3, lora_alpha=3), "LOHA", "lora_A.weight"),
    (lambda: peft.LoraConfig(r=3, lora_alpha=3), "LOKR", "lora_A.weight"),
])  # fmt: skip
def test_keys_of_another_type_than_the_configuration_are_errors(make: Callable[[], Any], kind: str, key: str) -> None:
    config = make()
    config.target_modules = list(NAMES)
    peft.get_peft_model(net(), config).save_pretrained("one")
    said = json.loads(Path("one/adapter_config.json").read_text())
    Path("one/adapter_config.json").write_text(json.dumps({"alpha": 3, "lora_alpha": 3, **said, "peft_type": kind}))
    with pytest.raises(cs.ConfigError, match=f"has the peft_type {kind}, but .*first.{key}, which adapters of this"):
        cs.lora_convert("one", to="peft", rank=2)


@pytest.mark.parametrize(
    ("module", "to"), [("lora_unet_first", "kohya"), ("lycoris_first", "kohya"), ("first", "peft")]
)
def test_the_hint_of_other_verbs_needs_no_base(module: str, to: str) -> None:
    saved(matrices(2, **LOHA), module=module)
    for verb in (
        lambda: cs.lora_resize("a.safetensors", rank=2),
        lambda: cs.lora_concat(["a.safetensors"]),
    ):
        with pytest.raises(cs.ConfigError, match="is a LoHa") as error:
            verb()
        assert f"ckpt lora convert --to {to} --rank 16" in error.value.hint
    cs.apply(cs.lora_convert("a.safetensors", to=to, rank=16), "out/" if to == "peft" else "out.safetensors")


def test_the_receipt_names_modules() -> None:
    saved(matrices(2, **LOHA))
    plan = cs.lora_convert("a.safetensors", to="kohya", rank=2)
    assert [fit.key for fit in cs.apply(plan, "out.safetensors").fits] == ["lora_unet_first"]


@pytest.mark.parametrize(("name", "alpha"), [("loha", -5.0), ("w1ab-w2ab", -1.1)])
def test_a_negative_alpha_is_kept_at_each_rank(name: str, alpha: float) -> None:
    tensors, folded = matrices(2, **LYCORIS[name]), set()
    saved(tensors, alpha=alpha)
    change = change_of(tensors, float(np.float32(alpha)))
    for rank in range(1, 5):
        plan = cs.lora_convert("a.safetensors", to="kohya", rank=rank)
        folded.add(any("multiplied into the factors" in note for note in plan.notes))
        cs.apply(plan, "out.safetensors", force=True)
        found = load_file("out.safetensors")
        up, down = (found[f"lora_unet_first.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
        product = float(found["lora_unet_first.alpha"]) / rank * up @ down
        assert norm(product - best(change, rank)) <= 2e-6 * norm(change)
        Path("plan.json").write_text(json.dumps(plan.to_json()))
        for sides in (("up", "down"), ("up",)):  # the product stays if both signs change
            turned = {f"lora_unet_first.lora_{side}.weight" for side in sides}
            save_file({key: -value if key in turned else value for key, value in found.items()}, "turned.safetensors")
            assert cs.verify("turned.safetensors", plan="plan.json").ok == (len(sides) == 2)
    assert True in folded


def test_the_memory_error_is_worded_for_a_loha() -> None:
    shapes: dict[str, tuple[int, ...]] = {"hada_w1_a": (800, 30), "hada_w1_b": (30, 800)}
    saved(matrices(2, **shapes, **{key.replace("w1", "w2"): shape for key, shape in shapes.items()}))
    with pytest.raises(cs.PlanError, match="memory, because the singular value decomposition of a LoHa or LoKr"):
        cs.lora_convert("a.safetensors", to="kohya", rank=2, memory="20MB")


def test_exclude_leaves_tensors_that_are_saved_in_full() -> None:
    torch.manual_seed(1)
    config = peft.LoHaConfig(r=3, alpha=5, target_modules=["first"], modules_to_save=["second"])
    peft.get_peft_model(net(), config).save_pretrained("one")
    with pytest.raises(cs.PatternError, match="second"):
        cs.lora_convert("one", to="peft", rank=2, exclude="second")
    with pytest.raises(cs.PlanError, match="no module of .* is left"):
        cs.lora_convert("one", to="peft", rank=2, exclude="**")
    cs.apply(cs.lora_convert("one", to="peft", rank=2), "out/")
    assert "base_model.model.second.weight" in load_file("out/adapter_model.safetensors")
