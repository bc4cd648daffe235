"""Extracting adapters: the best of a rank, what is lost is said, what PEFT opens is what was tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import extracting_lora as factoring
from fixtures.peft_cases import EXTRACTED

from ...helpers.adapters import base_state, factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "peft"


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
    monkeypatch.setattr(factoring, "FACTORING_ELEMENTS", 24)
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
    write(embed__weight=torch.randn(11, 8), wide__weight=torch.randn(20, 20))
    save_file({**base_state(), "wide.weight": torch.zeros(20, 20)}, "base.safetensors")
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=16, alpha=4), "a/")
    config = json.loads(Path("a/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 4)
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
    state = write(
        norm__weight=torch.zeros(8), layers__0__q__bias=torch.ones(8), conv__weight=base_state()["conv.weight"] + 1
    )
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4)
    assert {key for _, key in plan.unexpected} == {"norm.weight", "layers.0.q.bias", "embed.weight"}
    assert "3 tensors that differ are not in the adapter" in plan.notes[-1]
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4, save_modules=True)
    assert not plan.unexpected
    cs.apply(plan, "a/")
    config = json.loads(Path("a/adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["embed", "norm"]
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
        (["base.safetensors", "base.safetensors"], 4, "have the same values"),
        (["tuned.safetensors", "base.safetensors", "--include", "norm"], 4, "can be made low-rank"),
        (["tuned.safetensors", "base.safetensors", "--include", "nrm"], 2, "--include nrm matches none"),
        (["tuned.safetensors", "base.safetensors", "--rank", "0"], 2, "--rank 0 is not a valid rank"),
        (["tuned.safetensors", "base.safetensors", "--alpha", "-1"], 2, "--alpha -1.0 is not a valid alpha"),
        (["tuned.safetensors", "base.safetensors", "--alpha", "nan"], 2, "--alpha nan is not a valid alpha"),
        (
            ["tuned.safetensors", "base.safetensors", "--dtype", "int8"],
            2,
            "--dtype int8 is not a valid dtype for factors",
        ),
        (["tuned.safetensors", "other.safetensors"], 4, "have no key in common"),
        (
            ["nan.safetensors", "base.safetensors"],
            4,
            "layers.0.q.lora_A.weight: the difference between the weights of the tuned model and the base has values that are not finite",
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
    assert "cannot be an adapter: PEFT reads a folder" in " ".join(done.err.split())


@pytest.mark.long
def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    peaks = []
    monkeypatch.setattr(factoring, "FACTORING_ELEMENTS", 1 << 15)
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


@pytest.mark.parametrize("name", EXTRACTED)
def test_peft_opened_what_we_extract_and_merged_it_to_what_was_tuned(name: str) -> None:
    said = json.loads((GOLDEN / "peft.json").read_text())["opened"][name]
    assert said["warnings"] == []
    assert max(said["apart"].values()) < 1e-6
    tuned, base = GOLDEN / name / "tuned.safetensors", GOLDEN / "base.safetensors"
    receipt = cs.apply(cs.lora_extract(tuned, base, **EXTRACTED[name].options), "a/")
    ours, theirs = (load_file(f"{one}/adapter_model.safetensors") for one in ("a", GOLDEN / name))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], value, atol=1e-4) for key, value in theirs.items())
    config = "adapter_config.json"
    assert json.loads(Path("a", config).read_text()) == json.loads((GOLDEN / name / config).read_text())
    cs.apply(cs.lora_merge(base, "a"), "out.safetensors")
    lost = {fit.key: fit.error for fit in receipt.fits}
    state, found, wanted = (load_file(path) for path in (base, "out.safetensors", tuned))
    for key, value in wanted.items():
        apart = torch.linalg.norm(found[key] - value)
        assert apart <= lost.get(key, 0.0) * torch.linalg.norm(value - state[key]) + 1e-6 * torch.linalg.norm(value), (
            key
        )


def turned(by: torch.Tensor, *keys: str) -> None:
    """Write factors of the adapter in a/ that are turned: B turned by a matrix, A the other way."""
    state = load_file("a/adapter_model.safetensors")
    for key in keys:
        a, b = (f"base_model.model.{key}.lora_{side}.weight" for side in "AB")
        state[a] = (torch.linalg.inv(by) @ state[a].double()).to(state[a].dtype).contiguous()
        state[b] = (state[b].double() @ by).to(state[b].dtype).contiguous()
    save_file(state, "turned.safetensors")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_verify_holds_factors_by_their_product(dtype: str, scale: float) -> None:
    """LAPACK of another machine gives other signs, and turns equal singular vectors."""
    key = "layers.1.up.weight"
    write(layers__1__up__weight=base_state()[key] + scale * torch.randn(20, 8))
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=3, alpha=7, include=["layers.1"], dtype=dtype)
    cs.apply(plan, "a/")
    turned(torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)), "layers.1.up")
    found = cs.verify("turned.safetensors", plan=plan)
    assert found.ok, found.failed
    assert (found.compared, found.products) == (0, 2)
    assert found.to_json()["products"] == 2
    turned(torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0], "layers.1.up")
    found = cs.verify("turned.safetensors", plan=plan)
    assert found.ok, found.failed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_finds_a_product_that_is_another(dtype: str) -> None:
    write()
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2, dtype=dtype)
    cs.apply(plan, "a/")
    turned(torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64), "layers.0.q")
    assert cs.verify("turned.safetensors", plan=plan).ok
    state = load_file("turned.safetensors")
    state["base_model.model.layers.0.q.lora_A.weight"] *= 1 + (1e-4 if dtype == "float32" else 0.05)
    save_file(state, "turned.safetensors")
    faults = cs.verify("turned.safetensors", plan=plan).failed
    assert {fault.key.rpartition("lora_")[0] for fault in faults} == {"base_model.model.layers.0.q."}
    assert "the product of the low-rank factors A and B differs from the product that the sources give" in faults[0].why


def test_verify_holds_what_the_best_of_a_rank_leaves_open_to_no_machine_s_choice() -> None:
    """Of equal singular values any are the best."""
    delta = torch.eye(20, 8)
    write(layers__1__up__weight=delta)
    save_file({**base_state(), "layers.1.up.weight": torch.zeros(20, 8)}, "base.safetensors")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=3, include=["layers.1"])
    cs.apply(plan, "a/")
    state = load_file("a/adapter_model.safetensors")
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(6)))[0]
    state["base_model.model.layers.1.up.lora_A.weight"] = turn[:, :3].T.contiguous()
    state["base_model.model.layers.1.up.lora_B.weight"] = (delta @ turn[:, :3]).contiguous()
    save_file(state, "turned.safetensors")
    assert cs.verify("turned.safetensors", plan=plan).ok
    state["base_model.model.layers.1.up.lora_A.weight"] *= 5
    save_file(state, "turned.safetensors")
    assert not cs.verify("turned.safetensors", plan=plan).ok


def test_a_recorded_checksum_is_held_whatever_the_product() -> None:
    write()
    cs.apply(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2), "a/")
    file = Path("a/adapter_model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80  # a sign
    file.write_bytes(data)
    assert [fault.why[:10] for fault in cs.verify("a").failed] == ["has CRC-32"]


def test_parameters_of_no_module_go_along_alone() -> None:
    """PEFT's modules_to_save knows whole modules; what it does not know by name it loads into the base."""
    base = {
        **base_state(),
        "cls_token": torch.zeros(1, 1, 8),
        "layers.0.gamma": torch.zeros(8),
        "layers.0.q.g": torch.zeros(8),
    }
    save_file(base, "base.safetensors")
    change = {"cls_token", "layers.0.gamma", "layers.0.q.g", "layers.0.q.weight"}
    tuned = {key: value + 1 if key in change else value for key, value in base.items()}
    save_file(tuned, "tuned.safetensors")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2)
    assert {key for _, key in plan.unexpected} == change - {"layers.0.q.weight"}
    assert plan.notes[-1].endswith("; --save-modules saves tensors that are not weights of layers")
    some = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2, exclude=["layers.0.gamma"])
    assert some.notes[-1].endswith("; --save-modules saves 2 of these, which are not weights of layers")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2, save_modules=True)
    assert not plan.unexpected
    cs.apply(plan, "a/")
    said = json.loads(Path("a/adapter_config.json").read_text())["modules_to_save"]
    assert sorted(said) == ["cls_token", "layers.0.gamma", "layers.0.q.g"]
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    found = load_file("out.safetensors")
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in tuned.items())


def test_what_was_excluded_is_named_without_advice() -> None:
    write(norm__weight=torch.zeros(8))
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4, exclude=["norm", "embed"])
    assert plan.notes[-1] == "2 tensors that differ are not in the adapter: embed.weight, norm.weight"


def test_a_rank_that_is_cut_is_said() -> None:
    write()
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=16)
    assert (
        "the rank is 8 instead of 16, because it cannot be higher than the smaller side of the weight, for 2 modules: layers.0.q, layers.1.up"
        in plan.notes
    )
    assert {step.factor.rank for step in plan.steps if step.factor is not None} == {8}
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=8)
    assert not any("is cut" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("shape", "factors_of"),
    [
        ((6, 4, 3, 2), [(2, 4, 3, 2), (6, 2, 1, 1)]),
        ((6, 4, 1, 1), [(2, 4, 1, 1), (6, 2, 1, 1)]),
        ((6, 4, 5), [(2, 4, 5), (6, 2, 1)]),
        ((6, 4, 1, 2, 3), [(2, 4, 1, 2, 3), (6, 2, 1, 1, 1)]),
        ((6, 1, 3, 3), None),  # depthwise
        ((6, 4, 1, 1, 3), None),  # peft 0.21 opens it and cannot merge it
        ((8, 16, 80), None),  # experts
    ],
)
def test_a_convolution_has_factors_as_peft_s(shape: tuple[int, ...], factors_of: list[tuple[int, ...]] | None) -> None:
    base = {"c.weight": torch.zeros(shape), "q.weight": torch.zeros(4, 4)}
    change = torch.randn(shape[0], 2) @ torch.randn(2, torch.Size(shape[1:]).numel())
    save_file(base, "base.safetensors")
    save_file({"c.weight": change.reshape(shape), "q.weight": torch.ones(4, 4)}, "tuned.safetensors")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2)
    assert [step.shape for step in plan.steps if ".c." in step.key] == (factors_of or [])
    assert any("1 convolution is assumed to be neither grouped" in note for note in plan.notes) == bool(factors_of)
    assert [key for _, key in plan.unexpected] == ([] if factors_of else ["c.weight"])
    cs.apply(plan, "a/")
    assert cs.verify("a").ok
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    wanted = change.reshape(shape) if factors_of else base["c.weight"]
    assert torch.allclose(load_file("out.safetensors")["c.weight"], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "m.emb", "tok_emb", "embs", "embedder", "token_embedder", "word_embeddings", "tok_embeddings", "wte", "lut",
        "embed.0", "layers.0.relative_attention_bias",
    ],
)  # fmt: skip
def test_embeddings_are_known_by_the_names_that_people_use(name: str) -> None:
    base = {f"{name}.weight": torch.zeros(11, 8), "q.weight": torch.zeros(8, 8)}
    save_file(base, "base.safetensors")
    save_file({key: value + 1 for key, value in base.items()}, "tuned.safetensors")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=1)
    assert plan.unexpected == ((0, f"{name}.weight"),)
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=1, embeddings=True)
    assert f"base_model.model.{name}.lora_embedding_A" in {step.key for step in plan.steps}
    assert plan.notes == ()


@pytest.mark.parametrize("name", ["emb_layers.1", "time_emb_proj", "memb", "ember", "remember", "rel_bias"])
def test_layers_of_embeddings_are_layers(name: str) -> None:
    save_file({f"{name}.weight": torch.zeros(11, 8)}, "base.safetensors")
    save_file({f"{name}.weight": torch.ones(11, 8)}, "tuned.safetensors")
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=1)
    assert [step.key for step in plan.steps] == [f"base_model.model.{name}.lora_{side}.weight" for side in "AB"]


def test_embeddings_that_are_asked_for_and_are_none_is_said() -> None:
    write(embed__weight=base_state()["embed.weight"])
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2, embeddings=True)
    assert plan.notes == ("--embeddings changes nothing: no tensor that differs has the name of an embedding",)


def test_embeddings_that_differ_and_cannot_be_factors_are_named() -> None:
    """A vocabulary that has grown: the embedding differs, so it was untrue that no embedding does."""
    write(embed__weight=torch.ones(20, 8))
    plan = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=2, embeddings=True)
    assert "--embeddings changes nothing: embed.weight cannot be made low-rank, or is excluded" in plan.notes


def test_the_error_on_nothing_to_factor_says_what_limits_it() -> None:
    write()
    with pytest.raises(cs.PlanError, match="no selected tensor that differs .* can be made low-rank") as caught:
        cs.lora_extract("tuned.safetensors", "base.safetensors", exclude=["**"])
    assert "Leave --exclude out" in str(caught.value.hint)


def test_a_dry_run_says_what_the_run_says(ckpt: Any) -> None:
    write()
    said = ["lora", "extract", "tuned.safetensors", "base.safetensors", "--rank", "999"]
    dry = ckpt(*said, "-n")
    assert "the rank is 8 instead of 999, because it cannot be higher than the smaller side of the weight," in dry.err
    assert ckpt(*said, "-o", "a/").err == dry.err


def test_numbers_without_dimensions_are_compared() -> None:
    base = {"q.weight": torch.randn(8, 8), "logit_scale": torch.tensor(2.0), "seen": torch.tensor(3)}
    save_file(base, "b.safetensors")
    save_file({**base, "q.weight": torch.randn(8, 8), "seen": torch.tensor(4)}, "t.safetensors")
    plan = cs.lora_extract("t.safetensors", "b.safetensors", rank=2)
    assert {step.source_key for step in plan.steps} == {"q.weight"}
    assert any("seen" in note and "logit_scale" not in note for note in plan.notes)


@pytest.mark.parametrize("patterns", [{"exclude": "mask"}, {"include": "layers.*"}])
def test_a_tensor_that_cannot_be_compared_is_left_out_by_patterns(patterns: dict[str, str]) -> None:
    for name, state in (("base.pth", base_state()), ("tuned.pth", tuned_state())):
        torch.save({**state, "mask": torch.eye(4).to_sparse()}, name)
    with pytest.raises(cs.PlanError, match="the tensor mask of tuned.pth cannot be compared: it is sparse") as caught:
        cs.lora_extract("tuned.pth", "base.pth", rank=4)
    assert caught.value.hint == "Leave the tensor out: --exclude mask."
    plan = cs.lora_extract("tuned.pth", "base.pth", rank=4, **patterns)
    assert {step.source_key for step in plan.steps} == {"layers.0.q.weight", "layers.1.up.weight"}
