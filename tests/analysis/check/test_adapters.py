"""Faults of adapters, alone and against a base."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.checking.adapters import _matches

from ...helpers.four_bits import FOUR_BITS
from ...helpers.quantised import IN, OUT, Quantised
from .models import CARD, healthy
from .test_faults import findings

Factors = dict[str, torch.Tensor]


def trained(layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5), targets: tuple[str, ...] = ("q_proj", "v_proj")) -> Factors:
    draw = torch.Generator().manual_seed(0)
    found: Factors = {}
    for layer in layers:
        for name in targets:
            module = f"model.layers.{layer}.self_attn.{name}"
            found[f"{module}.lora_A.weight"] = torch.randn(2, 16, generator=draw)
            found[f"{module}.lora_B.weight"] = torch.randn(16, 2, generator=draw)
    return found


def saved(factors: Factors, **config: Any) -> str:
    from ...helpers.adapters import peft_folder

    peft_folder("adapter", factors, **{"target_modules": ["q_proj", "v_proj"], **config})
    Path("adapter/README.md").write_text(CARD.replace("license:", "base_model: org/base\nlicense:"))
    return "adapter"


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return healthy(tmp_path / "base")


def test_a_trained_adapter_passes_alone_and_against_its_base() -> None:
    folder = saved(trained())
    assert not findings(cs.check(folder))
    report = cs.check(folder, base="base")
    assert not findings(report)
    assert report.row("adapter-base").status.value == "PASS"


def test_factors_that_are_all_zero_are_named() -> None:
    factors = {key: value * ("lora_A" in key) for key, value in trained().items()}
    report = cs.check(saved(factors))
    assert findings(report) == {"adapter-zero": "WARN"}
    assert "(all B factors)" in report.row("adapter-zero").found[0].what


@pytest.mark.parametrize(("layers", "said"), [((3,), "(of 12 A factors) are zero"), (range(6), "(all A factors)")])
def test_zero_factors_a_are_named(layers: Sequence[int], said: str) -> None:
    """Those of embeddings are zero before training, in place of B."""
    factors = trained()
    for layer in layers:
        for name in ("q_proj", "v_proj"):
            factors[f"model.layers.{layer}.self_attn.{name}.lora_A.weight"].zero_()
    report = cs.check(saved(factors))
    assert findings(report) == {"adapter-zero": "WARN"}
    assert said in report.row("adapter-zero").found[0].what


@pytest.mark.parametrize("rows", [0, 1, 16])
def test_magnitudes_that_are_zero_are_named(rows: int) -> None:
    factors = trained()
    for key in list(factors):
        if key.endswith("lora_B.weight"):
            factors[key.replace("lora_B.weight", "lora_magnitude_vector")] = torch.linspace(0.5, 1, 16)
    name = "model.layers.2.self_attn.q_proj.lora_magnitude_vector"
    factors[name][:rows] = 0
    report = cs.check(saved(factors, use_dora=True))
    assert findings(report) == ({"adapter-zero": "WARN"} if rows else {})
    assert [key for one in report.row("adapter-zero").found for key in one.keys] == (
        [f"base_model.model.{name}"] if rows else []
    )


def test_single_factors_that_are_zero_are_named() -> None:
    factors = trained()
    factors["model.layers.3.self_attn.q_proj.lora_B.weight"] *= 0
    found = cs.check(saved(factors)).row("adapter-zero").found[0]
    assert found.keys == ("base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight",)


@pytest.mark.parametrize(("targets", "status"), [(["q_proj", "v_proj"], "WARN"), (["q_proj"], "FAIL"), ([], "FAIL")])
def test_a_target_that_matches_nothing_fails_only_if_factors_are_ignored(targets: list[str], status: str) -> None:
    row = cs.check(saved(trained(), target_modules=[*targets, "query_proj"])).row("adapter-targets")
    assert (row.status.value, "query_proj" in row.found[0].what) == (status, True)


def test_a_regular_expression_that_matches_nothing_fails() -> None:
    assert cs.check(saved(trained(), target_modules=r".*\.query")).row("adapter-targets").status.value == "FAIL"


def test_layers_missing_from_the_sequence_are_named() -> None:
    report = cs.check(saved(trained((0, 1, 2, 9))))
    assert report.row("adapter-sequence").status.value == "WARN"
    assert "6 indices are missing: 3, 4, 5, 6, 7, 8" in report.row("adapter-sequence").found[0].what


@pytest.mark.timeout(60)
def test_a_layer_with_a_number_of_nine_digits_takes_no_time() -> None:
    (found,) = cs.check(saved(trained((0, 999_999_999)))).row("adapter-sequence").found
    assert found.what.endswith("999999998 indices are missing: 1, 2, 3, 4, 5, 6, 7, 8, and 999999990 more")


def test_targets_match_whole_parts_of_names() -> None:
    modules = ["layers.0.q_proj", "layers.1.q_proj", "q_proj", "layers.0.my_q_proj"]
    targets = ["q_proj", "1.q_proj", "layers.0.q_proj", "proj", "layers"]
    assert _matches(targets, modules) == {"q_proj": 3, "1.q_proj": 1, "layers.0.q_proj": 1, "proj": 0, "layers": 0}


@pytest.mark.long
@pytest.mark.timeout(4)
def test_many_targets_take_no_time() -> None:
    modules = [f"model.layers.{i}.q_proj" for i in range(500)]
    assert not any(_matches([f"x{i}" for i in range(200_000)], modules).values())


def test_layers_that_the_configuration_names_are_no_gap() -> None:
    report = cs.check(saved(trained((0, 3)), layers_to_transform=[0, 3]))
    assert report.row("adapter-sequence").status.value == "NOT RUN"


def test_factors_of_two_ranks_fail() -> None:
    factors = trained()
    factors["model.layers.0.self_attn.q_proj.lora_B.weight"] = torch.ones(16, 3)
    assert cs.check(saved(factors)).row("adapter-shapes").status.value == "FAIL"


def test_factors_that_do_not_fit_the_base_fail() -> None:
    factors = trained()
    factors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 24)
    folder = saved(factors)
    assert cs.check(folder).row("adapter-shapes").status.value == "PASS"
    found = cs.check(folder, base="base").row("adapter-shapes")
    assert found.status.value == "FAIL"
    assert "changes a weight of shape (16, 24), but the base's weight has shape (16, 16)" in found.found[0].what


def test_an_output_size_that_is_only_the_input_size_of_the_base_fails() -> None:
    factors = trained(targets=("k_proj",))
    save_base_with_fewer_heads()
    found = cs.check(saved(factors, target_modules=["k_proj"]), base="narrow.safetensors").row("adapter-shapes")
    assert found.status.value == "FAIL"
    assert "changes a weight of shape (16, 16), but the base's weight has shape (8, 16)" in found.found[0].what


def save_base_with_fewer_heads() -> None:
    from safetensors.torch import save_file

    weights = {f"model.layers.{layer}.self_attn.k_proj.weight": torch.ones(8, 16) for layer in range(6)}
    save_file(weights, "narrow.safetensors")


def test_a_base_with_transposed_weights_fits() -> None:
    from safetensors.torch import save_file

    factors = {}
    for layer in range(6):
        factors[f"model.layers.{layer}.self_attn.k_proj.lora_A.weight"] = torch.ones(2, 16)
        factors[f"model.layers.{layer}.self_attn.k_proj.lora_B.weight"] = torch.ones(48, 2)
    weights = {f"model.layers.{layer}.self_attn.k_proj.weight": torch.ones(16, 48) for layer in range(6)}
    save_file(weights, "turned.safetensors")
    found = cs.check(saved(factors, target_modules=["k_proj"]), base="turned.safetensors").row("adapter-shapes")
    assert found.status.value == "PASS"


def test_modules_that_the_base_lacks_fail() -> None:
    report = cs.check(saved(trained((0, 1, 2, 3, 4, 5, 6))), base="base")
    assert findings(report) == {"adapter-base": "FAIL"}
    assert report.row("adapter-base").found[0].keys == (
        "model.layers.6.self_attn.q_proj",
        "model.layers.6.self_attn.v_proj",
    )


def test_a_card_without_the_base_is_named() -> None:
    folder = saved(trained())
    Path("adapter/README.md").write_text(CARD)
    assert findings(cs.check(folder)) == {"model-card": "WARN"}


def test_a_base_for_what_is_no_adapter_is_an_error() -> None:
    with pytest.raises(cs.ConfigError, match="is not a LoRA adapter"):
        cs.check("base", base="base")


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"lora_alpha": 0}, "WARN", "12 modules have a scale of 0 (lora_alpha, alpha_pattern), so their factors"),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 0}}, "WARN", "1 module has a scale of 0"),
        ({"trainable_token_indices": [5, 6]}, "FAIL", "trainable_token_indices selects tokens, but no tensor has"),
        ({"trainable_token_indices": {"embed_tokens": [5]}}, "FAIL", "does not fit the tensors"),
        ({"trainable_token_indices": None}, "PASS", ""),
        ({"trainable_token_indices": []}, "PASS", ""),
    ],
)
def test_settings_that_leave_factors_or_tokens_unchanged_are_named(
    settings: dict[str, Any], status: str, said: str
) -> None:
    row = cs.check(saved(trained(), **settings)).row("adapter-config")
    assert row.status.value == status
    assert [said in one.what for one in row.found] == ([True] if said else [])
    if status == "WARN":
        assert any(said in one for one in cs.lora_merge("base", "adapter").notes)


def test_changes_of_single_tokens_are_there() -> None:
    tokens = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.randn(2, 16)}
    row = cs.check(saved({**trained(), **tokens}, trainable_token_indices=[5, 6])).row("adapter-config")
    assert row.status.value == "PASS"


LOADED = "transformers also applies the adapter in adapter_config.json (adapter_model.safetensors)"


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("has_weights", "status", "said"),
    [(True, "WARN", LOADED), (False, "FAIL", "the folder has an adapter_config.json, but no adapter_model.safeten")],
)
def test_an_adapter_beside_a_whole_model_is_named_by_every_verb(has_weights: bool, status: str, said: str) -> None:
    folder = Path(saved(trained()))
    healthy(Path("whole"))
    for name in ("adapter_config.json", *(["adapter_model.safetensors"] if has_weights else [])):
        shutil.copy(folder / name, Path("whole", name))
    row = cs.check("whole").row("other-notes")
    assert row.status.value == status
    assert row.found[0].what.startswith(said)
    others = (cs.inspect("whole"), cs.fits("whole", "base"), cs.diff("whole", "base"), cs.convert("whole"),
              cs.average(["whole", "base"]), cs.merge(["whole", "base"], method="linear", weights=[1, 1]),
              cs.lora_merge("whole", "adapter"), cs.transplant("base", "whole"))  # fmt: skip
    assert [sum(said in note for note in one.notes) for one in others] == [1] * len(others)
    assert not any(said in note for note in cs.inspect("adapter").notes)


@pytest.mark.costly
@pytest.mark.parametrize("columns", [IN, IN + 64])
@pytest.mark.parametrize("model", FOUR_BITS.values(), ids=lambda one: one.name)
def test_weights_of_bitsandbytes_are_found_by_the_names_that_they_decode_to(model: Quantised, columns: int) -> None:
    """Their codes are stored flat, so that only the quant_state has their shape: QLoRA's bases."""
    model.folder(Path("coded"))
    factors = {}
    for layer in model.layers:
        factors |= {f"{layer}.lora_A.weight": torch.ones(2, columns), f"{layer}.lora_B.weight": torch.ones(OUT, 2)}
    folder = saved(factors, target_modules=[one.rpartition(".")[2] for one in model.layers])
    report = cs.check(folder, base="coded")
    assert report.row("adapter-base").status.value == "PASS"
    assert report.row("adapter-shapes").status.value == ("PASS" if columns == IN else "FAIL")
    if columns == IN:
        cs.lora_merge("coded", folder)


@pytest.mark.costly
@pytest.mark.parametrize(("columns", "status"), [(IN, "PASS"), (IN + 64, "FAIL")])
def test_only_the_number_of_parameters_is_compared_if_a_weight_cannot_be_decoded(columns: int, status: str) -> None:
    from safetensors.torch import load_file, save_file

    model = FOUR_BITS["bnb-nf4-sound"]
    file = model.folder(Path("coded")) / "model.safetensors"
    state = {key: value for key, value in load_file(file).items() if "quant_state" not in key}
    states = {f"{one}.weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8) for one in model.layers}
    save_file({**state, **states}, file)
    layer = model.layers[0]
    factors = {f"{layer}.lora_A.weight": torch.ones(2, columns), f"{layer}.lora_B.weight": torch.ones(OUT, 2)}
    report = cs.check(saved(factors, target_modules=[layer.rpartition(".")[2]]), base="coded")
    assert report.row("adapter-base").status.value == "PASS"
    assert report.row("adapter-shapes").status.value == status


@pytest.mark.costly
@pytest.mark.parametrize(
    ("layers", "settings", "said"),
    [
        (6, {}, ""),
        (4, {}, "target_modules selects 4 modules without factors: model.layers.4.self_attn.q_proj, "),
        (4, {"layers_to_transform": [0, 1, 2, 3]}, ""),
        (6, {"bias": "lora_only"}, ""),
        (6, {"target_modules": "all-linear"}, "target_modules selects 30 modules without factors: "),
        (6, {"target_modules": ["q_proj", "v_proj", "down_proj"]}, "target_modules selects 6 modules without factors"),
    ],
)
def test_selected_modules_of_the_base_without_factors_are_named_as_by_lora_merge(
    layers: int, settings: dict[str, Any], said: str
) -> None:
    """Of an adapter of a smaller model, the further layers of the base would stay as they are."""
    folder = saved(trained(tuple(range(layers))), **settings)
    row = cs.check(folder, base="base").row("adapter-config")
    assert row.status.value == ("WARN" if said else "PASS")
    assert [one.what.startswith(said) for one in row.found] == ([True] if said else [])
    assert any(said in note for note in cs.lora_merge("base", folder).notes) or not said
    assert not any("without factors: " in one.what for one in cs.check(folder).row("adapter-config").found)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights pissa_niter_4, which changed the base model"),
        ({"init_lora_weights": "loftq"}, "has init_lora_weights loftq, which changed the base model"),
        ({"alora_invocation_tokens": [5, 6]}, "sets alora_invocation_tokens, so ckpt cannot use the adapter"),
        ({"layer_replication": [[0, 3], [1, 4]]}, "sets layer_replication, so ckpt cannot use the adapter"),
        ({"use_qalora": True}, "sets use_qalora, so ckpt cannot use the adapter"),
        ({"use_qalora": False, "init_lora_weights": "gaussian", "layer_replication": None}, ""),
    ],
)
def test_an_adapter_that_only_peft_can_merge_is_named_only_beside_a_base(settings: dict[str, Any], said: str) -> None:
    """Alone it is sound: what can use it is not asked."""
    folder = saved(trained(), **settings)
    assert cs.check(folder).row("adapter-config").status.value == "PASS"
    row = cs.check(folder, base="base").row("adapter-config")
    assert row.status.value == ("WARN" if said else "PASS")
    assert [one.what.startswith(f"adapter_config.json {said}") for one in row.found] == ([True] if said else [])
    if said:
        with pytest.raises(cs.ConfigError):
            cs.lora_merge("base", folder)
