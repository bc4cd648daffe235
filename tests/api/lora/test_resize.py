"""Adapters with smaller ranks: the best products, as a full decomposition in double precision gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.adapters import factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden"
MLX, PEFT = GOLDEN / "adapters/mlx", GOLDEN / "peft"
PREFIX = "base_model.model."
SHAPES = {"q": (24, 16, 8), "up": (40, 16, 6), "down": (10, 30, 12)}
"""(out, in, rank) of each module; the last rank is larger than a side."""


def decaying(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Factors whose products have singular values that decrease."""
    made = {}
    for seed, (name, (out, into, rank)) in enumerate(SHAPES.items()):
        a, b = factors(out, into, rank, seed)
        made[f"{name}.lora_A.weight"] = (a * (0.6 ** torch.arange(rank))[:, None]).to(dtype)
        made[f"{name}.lora_B.weight"] = b.to(dtype)
    return made


def product(tensors: dict[str, torch.Tensor], name: str) -> Any:
    a, b = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].double().numpy() for part in "AB")
    return b.reshape(len(b), -1) @ a.reshape(len(a), -1)


def best(matrix: Any, rank: int) -> Any:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def config_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "adapter_config.json").read_text())


def scales(folder: str) -> dict[str, float]:
    """The scale of each module, as PEFT computes it."""
    said, found = config_of(folder), {}
    ranks, alphas = (
        {pattern.removeprefix("^"): value for pattern, value in (said.get(f"{kind}_pattern") or {}).items()}
        for kind in ("rank", "alpha")
    )
    for name in SHAPES:
        found[name] = alphas.get(name, said["lora_alpha"]) / ranks.get(name, said["r"])
    return found


@pytest.fixture
def adapter() -> dict[str, torch.Tensor]:
    ranks = {name: rank for name, (_, _, rank) in SHAPES.items()}
    peft_folder("one", decaying(), r=8, rank_pattern=ranks, target_modules=list(SHAPES), lora_alpha=12, task_type="X")
    return load_file("one/adapter_model.safetensors")


def test_products_are_the_best_of_their_rank(adapter: dict[str, torch.Tensor]) -> None:
    receipt = cs.apply(cs.lora_resize("one", rank=4), "out/")
    found = load_file("out/adapter_model.safetensors")
    fits = {fit.key.removeprefix(PREFIX): fit for fit in receipt.fits}
    assert fits.keys() == SHAPES.keys()  # the names of the modules: a shape is that of the change
    for name, (out, into, _) in SHAPES.items():
        whole = product(adapter, name)
        wanted, made = best(whole, 4), product(found, name)
        assert np.linalg.norm(made - wanted) <= 1e-6 * np.linalg.norm(wanted)
        error = np.linalg.norm(whole - wanted) / np.linalg.norm(whole)
        assert fits[name].error == pytest.approx(error, rel=1e-6)
        assert (fits[name].rank, fits[name].shape) == (4, (out, into))
        a, b = (found[f"{PREFIX}{name}.lora_{part}.weight"] for part in "AB")
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-5)  # values are divided evenly
    assert scales("out") == pytest.approx(scales("one"), rel=1e-15)
    said = config_of("out")
    assert (said["r"], said["rank_pattern"], said["task_type"]) == (4, {}, "X")
    assert cs.verify("out").compared == 6
    cs.apply(cs.lora_resize("one", rank=4), "again/")
    assert Path("out/adapter_model.safetensors").read_bytes() == Path("again/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_energy_keeps_a_share_of_the_squared_singular_values(adapter: dict[str, torch.Tensor], energy: float) -> None:
    cs.apply(cs.lora_resize("one", energy=energy), "out/")
    found, said = load_file("out/adapter_model.safetensors"), config_of("out")
    for name in SHAPES:
        values = np.linalg.svd(product(adapter, name), compute_uv=False) ** 2
        shares = np.cumsum(values) / values.sum()
        rank = said["rank_pattern"].get(f"^{name}", said["r"])
        assert found[f"{PREFIX}{name}.lora_A.weight"].shape[0] == rank
        assert shares[rank - 1] >= energy - 1e-12
        assert rank == 1 or shares[rank - 2] < energy
    assert scales("out") == pytest.approx(scales("one"), rel=1e-15)
    assert cs.verify("out").ok


def test_both_limits_together(adapter: dict[str, torch.Tensor]) -> None:
    plan = cs.lora_resize("one", energy=0.9999, rank=2)
    assert {step.factor.rank for step in plan.steps if step.factor} == {2}


def test_a_rank_that_is_no_larger_is_copied(adapter: dict[str, torch.Tensor]) -> None:
    plan = cs.lora_resize("one", rank=8)
    assert any(
        note.startswith("2 modules keep their factors, because their rank does not become smaller")
        for note in plan.notes
    )
    receipt = cs.apply(plan, "out/")
    found = load_file("out/adapter_model.safetensors")
    for name in ("q", "up"):
        for part in "AB":
            key = f"{PREFIX}{name}.lora_{part}.weight"
            assert torch.equal(found[key], adapter[key])
    assert [fit.rank for fit in receipt.fits] == [8]


def test_a_rank_above_the_sides_of_a_weight_is_cut_without_a_loss(adapter: dict[str, torch.Tensor]) -> None:
    receipt = cs.apply(cs.lora_resize("one", rank=11), "out/")
    found = load_file("out/adapter_model.safetensors")
    assert [(fit.rank, fit.error < 1e-12) for fit in receipt.fits] == [(10, True)]
    assert np.allclose(product(found, "down"), product(adapter, "down"), atol=1e-5)


def test_what_is_joined_is_resized_to_what_it_was() -> None:
    peft_folder(
        "one", {f"q.lora_{part}.weight": value for part, value in zip("AB", factors(24, 16, 4), strict=True)}, r=4
    )
    cs.apply(cs.lora_concat(["one", "one"], weights=[0.75, 0.25]), "joined/")
    cs.apply(cs.lora_resize("joined", energy=1 - 1e-9), "out/")
    found, wanted = (load_file(f"{name}/adapter_model.safetensors") for name in ("out", "one"))
    assert found[f"{PREFIX}q.lora_A.weight"].shape == (4, 16)
    assert np.allclose(product(found, "q"), product(wanted, "q"), atol=1e-5)  # the scales are 1 in both


def test_an_adapter_of_kohya_stays_one() -> None:
    state = {}
    for name, (out, into, rank) in SHAPES.items():
        a, b = factors(out, into, rank)
        state |= {f"lora_te1_{name}.lora_down.weight": a, f"lora_te1_{name}.lora_up.weight": b}
        state[f"lora_te1_{name}.alpha"] = torch.tensor(rank / 2)
    said = {"ss_network_dim": "8", "ss_network_alpha": "4", "sshs_model_hash": "abc", "ss_title": "t"}
    save_file(state, "one.safetensors", said)
    cs.apply(cs.lora_resize("one.safetensors", rank=3), "out.safetensors")
    found = load_file("out.safetensors")
    assert found.keys() == state.keys()
    assert {found[f"lora_te1_{name}.alpha"].item() for name in SHAPES} == {1.5}
    with safe_open("out.safetensors", "pt") as file:
        kept = file.metadata()
    assert {name: kept.get(name) for name in said} == {
        "ss_network_dim": "3", "ss_network_alpha": "1.5", "sshs_model_hash": None, "ss_title": "t",
    }  # fmt: skip
    assert cs.verify("out.safetensors").ok


@pytest.mark.long
def test_convolutions_embeddings_and_saved_modules() -> None:
    base = PEFT / "base.safetensors"
    for name, rank in (("conv", 2), ("embedding", 2), ("saved", 2), ("bias-lora", 2), ("attention", 2)):
        cs.apply(cs.lora_resize(PEFT / name, rank=rank), f"{name}/")
        assert cs.verify(name).ok
        for source, to in ((PEFT / name, "whole"), (name, "small")):
            cs.apply(cs.lora_merge(base, source), f"{to}.safetensors", force=True)
        before, whole, small = (load_file(one) for one in (base, "whole.safetensors", "small.safetensors"))
        for key, value in whole.items():
            change = (value - before[key]).double().numpy().reshape(len(value), -1)
            made = (small[key] - before[key]).double().numpy().reshape(len(value), -1)
            is_factored = value.ndim > 1 and not (name == "saved" and key.startswith(("head", "norm")))
            wanted = best(change, 2) if is_factored else change
            assert np.linalg.norm(made - wanted) <= 1e-5 * max(1.0, np.linalg.norm(wanted)), (name, key)


def test_mlx_becomes_peft_with_a_note() -> None:
    plan = cs.lora_resize(MLX / "own", rank=2)
    assert any("the output is a folder of PEFT" in note for note in plan.notes)
    cs.apply(plan, "out/")
    assert cs.verify("out").ok
    assert config_of("out")["r"] == 2


def test_16_bits_stay_16_bits() -> None:
    peft_folder("one", decaying(torch.bfloat16), r=8, rank_pattern={n: s[2] for n, s in SHAPES.items()})
    cs.apply(cs.lora_resize("one", rank=4), "out/")
    assert {value.dtype for value in load_file("out/adapter_model.safetensors").values()} == {torch.bfloat16}
    cs.apply(cs.lora_resize("one", rank=4, dtype="float32"), "wide/")
    assert {value.dtype for value in load_file("wide/adapter_model.safetensors").values()} == {torch.float32}
    assert cs.verify("wide").ok


def test_a_zero_product_has_the_rank_one() -> None:
    a, b = factors(8, 8, 3)
    peft_folder("one", {"q.lora_A.weight": a, "q.lora_B.weight": torch.zeros_like(b)}, r=3)
    cs.apply(cs.lora_resize("one", energy=0.9), "out/")
    found = load_file("out/adapter_model.safetensors")
    assert found[f"{PREFIX}q.lora_A.weight"].shape == (1, 8)
    assert not product(found, "q").any()


def test_another_product_fails_the_verification(adapter: dict[str, torch.Tensor]) -> None:
    plan = cs.lora_resize("one", rank=4)
    cs.apply(plan, "out/")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert cs.verify("out", plan="plan.json").ok
    changed = load_file("out/adapter_model.safetensors")
    changed[f"{PREFIX}q.lora_A.weight"][0] *= 1.01
    save_file(changed, "changed.safetensors")
    assert not cs.verify("changed.safetensors", plan="plan.json").ok


def test_an_adapter_without_factors_is_an_error() -> None:
    peft_folder("saved", {"norm.weight": torch.rand(8)}, modules_to_save=["norm"])
    for make in (lambda: cs.lora_resize("saved", rank=2), lambda: cs.lora_convert("saved", to="peft")):
        with pytest.raises(cs.PlanError, match="saved has no factors, only tensors that it saves in full"):
            make()


def test_what_cannot_be_resized_is_an_error(adapter: dict[str, torch.Tensor]) -> None:
    with pytest.raises(cs.PlanError, match="is a DoRA"):
        cs.lora_resize(PEFT / "dora", rank=2)
    for options in ({}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"energy": float("nan")}):
        with pytest.raises(cs.ConfigError):
            cs.lora_resize("one", **options)
    a, b = factors(8, 8, 3)
    a[0, 0] = float("nan")
    peft_folder("bad", {"q.lora_A.weight": a, "q.lora_B.weight": b}, r=3)
    with pytest.raises(cs.PlanError, match="not finite"):
        cs.lora_resize("bad", energy=0.5)
    with pytest.raises(cs.PlanError, match="not finite"):
        cs.apply(cs.lora_resize("bad", rank=2), "out/")
    with pytest.raises(cs.PlanError, match="memory"):
        cs.lora_resize("one", rank=2, memory="1KB")


def test_the_command_prints_what_is_lost(adapter: dict[str, torch.Tensor], ckpt: Any) -> None:
    done = ckpt("lora", "resize", "one", "--rank", "4", "-o", "out/")
    assert done.code == 0
    assert "lost" in done.out + done.err
    said = json.loads(ckpt("lora", "resize", "one", "--energy", "0.9", "-o", "two/", "--json").out)
    assert {"key", "shape", "rank", "error"} == set(said["modules"][0])
    assert ckpt("lora", "resize", "one", "-n").code == 2
