"""Each planted fault is caught and named by exactly the check that is for it, and the healthy model has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .families import save_small
from .faults import FAULTS, Fault, quantised, rows
from .models import FIRST, INDEX, SECOND, change, edit_json, healthy

SEEN_BY_CLASS = ("configuration", "missing-tensors", "layer-sequence")
"""The checks whose faults the class of the model may show, too."""


def findings(report: cs.CheckReport) -> dict[str, str]:
    return {row.id: row.status.value for row in report.rows if row.status.value in ("WARN", "FAIL")}


def test_the_healthy_model_passes(tmp_path: Path) -> None:
    report = cs.check(healthy(tmp_path / "model"))
    assert not findings(report)
    assert report.ok
    assert report.verdict.value == "PASS"


@pytest.mark.long
def test_the_healthy_quantised_model_passes(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "model")
    quantised(lambda scales: scales)(folder)
    report = cs.check(folder)
    assert not findings(report)
    assert report.row("scales").status.value == "PASS"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.id}-{fault.said[:24]}")
def test_a_planted_fault_is_caught_by_its_check_alone(fault: Fault, tmp_path: Path) -> None:
    folder = healthy(tmp_path / "model")
    fault.plant(folder)
    report = cs.check(folder)
    found = findings(report)
    if fault.id in SEEN_BY_CLASS:
        found.pop("class-tensors", None)
    assert found == {fault.id: fault.status}
    assert fault.said in " ".join(found.what for found in report.row(fault.id).found)
    assert all(found.todo for found in report.row(fault.id).found)


@pytest.mark.long
def test_a_tensor_that_only_the_class_needs_is_missed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = save_small("wav2vec2", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    report = cs.check(folder)
    assert findings(report) == {"class-tensors": "FAIL"}
    assert "has 1 tensor that the weights lack: lm_head.weight" in report.row("class-tensors").found[0].what
    assert cs.check(folder, skip=["class-tensors"]).ok


@pytest.mark.long
def test_tensors_that_the_class_ties_have_one_value(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = save_small("bart", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    shared = state.pop("model.shared.weight")
    state["model.encoder.embed_tokens.weight"] = shared
    state["model.decoder.embed_tokens.weight"] = shared + 0.01
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    report = cs.check(folder)
    assert report.row("ties").status.value == "FAIL"
    said = report.row("ties").found[0].what
    assert "ties model.encoder.embed_tokens.weight and model.decoder.embed_tokens.weight" in said
    state["model.decoder.embed_tokens.weight"] = shared.clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert cs.check(folder).row("ties").status.value == "PASS"


@pytest.mark.long
def test_the_row_of_the_padding_token_need_not_be_trained(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "model")
    edit_json(folder / "config.json", lambda config: config.update(pad_token_id=7))
    change(folder, "model.embed_tokens.weight", rows(0.01, 7))
    assert cs.check(folder).row("untrained-rows").status.value == "PASS"
    edit_json(folder / "config.json", lambda config: config.update(eos_token_id=7))
    assert cs.check(folder).row("untrained-rows").status.value == "WARN"


def routers(zero: tuple[int, ...]) -> cs.CheckReport:
    draw = torch.Generator().manual_seed(0)
    weights = {f"layers.{i}.mlp.gate.weight": torch.randn(8, 16, generator=draw) for i in range(6)}
    for layer in zero:
        weights[f"layers.{layer}.mlp.gate.weight"].zero_()
    save_file(weights, "moe.safetensors")
    return cs.check("moe.safetensors")


def test_a_router_of_zeros_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not findings(routers(()))
    report = routers((2,))
    assert findings(report) == {"all-zeros": "WARN"}
    assert report.row("all-zeros").found[0].keys == ("layers.2.mlp.gate.weight",)


def test_routers_that_are_all_new_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not findings(routers(tuple(range(6))))


def test_there_are_more_than_twenty_faults() -> None:
    assert len(FAULTS) > 20


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"num_attention_heads": 0}, "FAIL", "cannot be built"),
        ({"model_type": "of tomorrow"}, "WARN", "cannot be built"),
        ({"vocab_size": "many"}, "FAIL", "cannot be built: the class LlamaConfig refuses the fields of config.json"),
        ({"vocab_size": "many", "transformers_version": "4.1.0.dev0"}, "FAIL", "refuses the fields"),
        ({"vocab_size": "many", "transformers_version": "999.0.0"}, "WARN", "refuses the fields"),
        ({"hidden_act": None, "transformers_version": "4.1.0"}, "WARN", "transformers 4.1.0 wrote config.json"),
        ({"layer_types": ["of yesterday"] * 6}, "WARN", "no version of transformers is in config.json"),
        ({"use_cache": 1, "transformers_version": "4.40.0"}, "WARN", "is installed, transformers 4.40.0 wrote"),
        ({"num_attention_heads": None, "transformers_version": "installed"}, "FAIL", "refuses the fields"),
        ({"num_hidden_layers": 2.5, "transformers_version": "installed"}, "FAIL", "refuses the fields"),
        ({"model_type": "of tomorrow", "transformers_version": "9.0"}, "WARN", "transformers 9.0 wrote config.json"),
    ],
)
def test_a_class_that_cannot_be_built_is_named_with_its_own_advice(
    change: dict[str, object], status: str, said: str, tmp_path: Path
) -> None:
    installed = pytest.importorskip("transformers").__version__
    change = {name: installed if value == "installed" else value for name, value in change.items()}
    folder = healthy(tmp_path / "model")
    edit_json(folder / "config.json", lambda config: config.update(change))
    row = cs.check(folder).row("class-tensors")
    assert row.status.value == status
    assert said in row.found[0].what
    assert "the version of transformers" in row.found[0].todo


def test_a_model_without_its_pooler_does_not_fail(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    assert cs.check(tmp_path / "model").row("class-tensors").status.value == "WARN"


def test_a_module_that_a_quantised_model_lacks_fails(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = healthy(tmp_path / "model")
    quantised(lambda scales: scales)(folder)
    for name in (FIRST, SECOND):
        state = load_file(folder / name)
        kept = {key: value for key, value in state.items() if "layers.2.mlp.up_proj" not in key}
        if len(kept) < len(state):
            save_file(kept, folder / name, {"format": "pt"})
            edit_json(
                folder / INDEX,
                lambda index: index.update(
                    weight_map={key: of for key, of in index["weight_map"].items() if "layers.2.mlp.up_proj" not in key}
                ),
            )
    assert cs.check(folder).row("class-tensors").status.value == "FAIL"


def test_a_server_s_answer_in_place_of_a_shard_is_called_so() -> None:
    Path("m").mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file({"a.weight": torch.ones(2, 2)}, f"m/{names[0]}")
    Path("m", names[1]).write_text("Access to this resource is restricted. Sign in.\n")
    Path("m/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a.weight": names[0], "b.weight": names[1]}})
    )
    (row,) = (row for row in cs.check("m").to_json()["rows"] if row["id"] == "shards")
    assert row["found"][0]["what"] == (
        f"{names[1]} cannot be read: it is a text file that begins: Access to this resource is restricted. Sign in"
    )
