"""Extracting adapters: the best of a rank, what is lost is said, what PEFT opens is what was tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import factoring

from .adapters import base_state, factors, peft_folder

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "peft"


def tuned_state(rank: int = 2) -> dict[str, torch.Tensor]:
    """The base with differences of a rank in three matrices."""
    state = base_state()
    for seed, key in enumerate(("layers.0.q.weight", "layers.1.up.weight", "embed.weight")):
        a, b = factors(*state[key].shape, rank, seed)
        state[key] = state[key] + b @ a
    return state


def write(**change: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {**tuned_state(), **{key.replace("__", "."): value for key, value in change.items()}}
    save_file(base_state(), "base.safetensors")
    save_file(state, "tuned.safetensors")
    return state


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_an_extract_of_a_merge_gives_the_adapter_back(alpha: float | None) -> None:
    state = write()
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4, alpha=alpha, embeddings=True)
    receipt = cs.apply(plan, "a/")
    assert [fit.key for fit in receipt.fits] == ["embed.weight", "layers.0.q.weight", "layers.1.up.weight"]
    assert all(fit.error < 1e-6 for fit in receipt.fits)
    assert cs.verify("a").ok
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    base, found = base_state(), load_file("out.safetensors")
    for key, value in state.items():
        lost, size = torch.linalg.norm(found[key] - value), torch.linalg.norm(value - base[key])
        assert lost <= 1e-6 * size if size else torch.equal(found[key], value), key


def test_what_is_lost_is_what_the_best_of_a_rank_loses() -> None:
    delta = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    write(layers__1__up__weight=base_state()["layers.1.up.weight"] + delta)
    receipt = cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=3), "a/")
    (fit,) = (fit for fit in receipt.fits if fit.key == "layers.1.up.weight")
    values = torch.linalg.svdvals(delta.double())
    assert fit.error == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-5)
    tensors = load_file("a/adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.layers.1.up.lora_{side}.weight"] for side in "AB")
    assert torch.linalg.norm(b @ a - delta) / torch.linalg.norm(delta) == pytest.approx(fit.error, rel=1e-5)
    assert torch.allclose(a @ a.T, b.T @ b, atol=1e-4)


def test_blocks_and_threads_change_nothing_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2), "a/")
    monkeypatch.setattr(factoring, "ELEMENTS", 24)
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2), "b/")
    assert cs.verify("a").ok
    for key, value in load_file("a/adapter_model.safetensors").items():
        assert torch.allclose(load_file("b/adapter_model.safetensors")[key], value, atol=1e-5)


def test_weights_that_lie_the_other_way_are_extracted_so() -> None:
    state = write()
    plan = cs.lora_extract(
        "tuned.safetensors", "base.safetensors", rank=8, include=["layers.*.{q,up}"], fan_in_fan_out=True
    )
    cs.apply(plan, "a/")
    assert load_file("a/adapter_model.safetensors")["base_model.model.layers.1.up.lora_A.weight"].shape == (8, 20)
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    assert torch.allclose(load_file("out.safetensors")["layers.0.q.weight"], state["layers.0.q.weight"], atol=1e-5)


def test_a_matrix_that_is_smaller_than_the_rank_has_a_rank_of_its_own() -> None:
    write()
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=16, alpha=4), "a/")
    config = json.loads(Path("a/adapter_config.json").read_text())
    assert config["rank_pattern"] == {r"^layers\.0\.q": 8, r"^layers\.1\.up": 8}
    assert config["alpha_pattern"] == {r"^layers\.0\.q": 2, r"^layers\.1\.up": 2}


def test_a_rank_of_its_own_is_not_that_of_a_module_whose_name_ends_so() -> None:
    torch.manual_seed(0)
    base = {"proj.weight": torch.randn(8, 8), "enc.proj.weight": torch.randn(64, 64)}
    save_file(base, "base.safetensors")
    save_file({key: value + 0.1 * torch.randn_like(value) for key, value in base.items()}, "tuned.safetensors")
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=16), "a/")
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    found, wanted = load_file("out.safetensors"), load_file("tuned.safetensors")
    assert torch.allclose(found["proj.weight"], wanted["proj.weight"], atol=1e-5)  # of full rank


def test_what_differs_and_is_no_matrix_is_named_or_saved() -> None:
    state = write(norm__weight=torch.zeros(8), layers__0__q__bias=torch.ones(8), conv__weight=torch.ones(5, 3, 3, 2))
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4)
    assert {key for _, key in plan.unexpected} == {"norm.weight", "layers.0.q.bias", "conv.weight", "embed.weight"}
    assert "4 tensors that differ are not in the adapter" in plan.notes[-1]
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4, save_modules=True)
    assert not plan.unexpected
    cs.apply(plan, "a/")
    config = json.loads(Path("a/adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["conv", "embed", "norm"]
    assert config["bias"] == "lora_only"
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    found = load_file("out.safetensors")
    assert all(torch.allclose(found[key], value, atol=1e-5) for key, value in state.items())


def test_targets_whose_names_others_end_with_are_meant_alone() -> None:
    base = {f"{head}layers.0.q.weight": torch.zeros(4, 4) for head in ("", "decoder.")}
    save_file(base, "base.safetensors")
    save_file({**base, "layers.0.q.weight": torch.ones(4, 4)}, "tuned.safetensors")
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=1), "a/")
    assert json.loads(Path("a/adapter_config.json").read_text())["target_modules"] == r"layers\.0\.q"


def test_verify_finds_a_changed_factor() -> None:
    write()
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2)
    cs.apply(plan, "a/")
    state = load_file("a/adapter_model.safetensors")
    state["base_model.model.layers.0.q.lora_A.weight"][1, 1] += 0.1
    save_file(state, "other.safetensors")
    (fault,) = cs.verify("other.safetensors", plan=plan).failed
    assert fault.key == "base_model.model.layers.0.q.lora_A.weight"


def test_a_plan_on_disk_gives_the_same_bytes_and_the_command_says_what_is_lost(ckpt: Any) -> None:
    write()
    said = ["lora", "extract", "tuned.safetensors", "base.safetensors", "--rank", "1"]
    Path("plan.json").write_text(ckpt(*said, "-n", "--json").out)
    done = ckpt(*said, "-o", "a")
    assert done.code == 0
    assert "layers.0.q.weight (8, 8)" in done.out
    assert "lost" in done.out
    receipt = json.loads(ckpt("apply", "plan.json", "-o", "b", "--json").out)
    assert [row["rank"] for row in receipt["modules"]] == [1, 1]
    a, b = (Path(f"{name}/adapter_model.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert ckpt("verify", "b").code == 0


def test_an_adapter_is_never_overwritten_unless_it_is_asked_for(ckpt: Any) -> None:
    write()
    peft_folder("a", {})
    Path("a/adapter_config.json").unlink()
    said = ["lora", "extract", "tuned.safetensors", "base.safetensors", "-o", "a"]
    done = ckpt(*said)
    assert done.code == 5
    assert "adapter_model.safetensors" in done.err
    assert ckpt(*said, "--force").code == 0
    assert cs.verify("a").ok


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["base.safetensors", "base.safetensors"], 4, "hold the same values"),
        (["tuned.safetensors", "base.safetensors", "--include", "norm"], 4, "can be of low rank"),
        (["tuned.safetensors", "base.safetensors", "--include", "nrm"], 2, "--include nrm matches none"),
        (["tuned.safetensors", "base.safetensors", "--rank", "0"], 2, "--rank 0 is no rank"),
        (["tuned.safetensors", "base.safetensors", "--alpha", "-1"], 2, "--alpha -1.0 is no alpha"),
        (["tuned.safetensors", "base.safetensors", "--alpha", "nan"], 2, "--alpha nan is no alpha"),
        (["tuned.safetensors", "base.safetensors", "--dtype", "int8"], 2, "--dtype int8 is none of factors"),
        (["tuned.safetensors", "other.safetensors"], 4, "have no key in common"),
        (
            ["nan.safetensors", "base.safetensors"],
            4,
            "layers.0.q.lora_A.weight: its difference from the base is not finite",
        ),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], code: int, why: str, ckpt: Any) -> None:
    state = write()
    save_file({**state, "layers.0.q.weight": torch.full((8, 8), float("nan"))}, "nan.safetensors")
    save_file({"x": torch.zeros(1)}, "other.safetensors")
    done = ckpt("lora", "extract", *arguments, "-o", "a/")
    assert done.code == code, done
    assert why in " ".join(done.err.split())
    assert not Path("a").exists()


def test_a_file_cannot_hold_an_adapter(ckpt: Any) -> None:
    write()
    done = ckpt("lora", "extract", "tuned.safetensors", "base.safetensors", "-o", "a.safetensors")
    assert done.code == 2
    assert "is to hold an adapter: a folder" in " ".join(done.err.split())


def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    peaks = []
    monkeypatch.setattr(factoring, "ELEMENTS", 1 << 15)
    for rows in (2_000, 8_000):
        base = torch.zeros(rows, 256)
        save_file({"a.weight": base}, "base.safetensors")
        save_file({"a.weight": base + torch.randn(rows, 1) @ torch.randn(1, 256)}, "tuned.safetensors")
        plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2)
        tracemalloc.start()
        cs.apply(plan, f"of{rows}/")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 8_000 * 256 * 4


@pytest.mark.parametrize("name", ["extracted", "extracted-saved"])
def test_peft_opened_what_we_extract_and_merged_it_to_what_was_tuned(name: str) -> None:
    said = json.loads((GOLDEN / "peft.json").read_text())["opened"][name]
    assert said["warnings"] == []
    assert max(said["apart"].values()) < 1e-6
    saved = name == "extracted-saved"
    plan = cs.lora_extract(
        GOLDEN / name / "tuned.safetensors", GOLDEN / "base.safetensors", rank=4, alpha=8, embeddings=not saved,
        save_modules=saved,
    )  # fmt: skip
    cs.apply(plan, "a/")
    ours, theirs = (load_file(f"{one}/adapter_model.safetensors") for one in ("a", GOLDEN / name))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], value, atol=1e-4) for key, value in theirs.items())
    config = "adapter_config.json"
    assert json.loads(Path("a", config).read_text()) == json.loads((GOLDEN / name / config).read_text())
