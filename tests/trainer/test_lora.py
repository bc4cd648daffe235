"""Adapters are trained instead of the weights, and saved so that PEFT and ``ckpt lora merge`` open them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.cli.verbs.train import _next as next_commands
from ckptsurgeon.errors import ConfigError
from ckptsurgeon.trainer.checks.saved import RESUMED
from ckptsurgeon.trainer.config.settings import Lora
from ckptsurgeon.trainer.run.report import read_report
from ckptsurgeon.trainer.state.lora import adapter_tensors, add_adapters, load_adapter
from ckptsurgeon.trainer.state.saved_model import saved_model

from .toy import STARTED, equal, job, loop, write
from .waves import ctc_model_of

peft = pytest.importorskip("peft")

LORA: dict[str, Any] = {"rank": 4, "targets": ["first", "second"], "save": ["head"]}
CHANGED = "body.second.lora_A.default.weight"


def trained(init: str, **settings: Any) -> Any:
    """A run of the toy with adapters."""
    write(**{"lora": LORA, "steps": 40, "evaluate_every": 20, "save_every": 20, **settings})
    return cs.train(**STARTED, run="run")


@pytest.mark.costly
@pytest.mark.parametrize("lora", [Lora(("all-linear",)), Lora(("all-linear",), save=("lm_head",)), Lora(("lm_head",))])
def test_adapters_of_a_model_of_speech_are_those_of_its_linear_layers_and_nothing_else(lora: Lora) -> None:
    """transformers cannot name the input embeddings of wav2vec 2.0, which has none."""
    pytest.importorskip("transformers")
    model = ctc_model_of()
    add_adapters(model, lora, seed=0)
    found = adapter_tensors(model)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(found) == len(trained)
    assert ("base_model.model.lm_head.weight" in found) == bool(lora.save)
    assert all("lora_" in key or "lm_head" in key for key in found)
    save_file({key: tensor.detach() + 1 for key, tensor in found.items()}, "adapter.safetensors")
    load_adapter(model, "adapter.safetensors")
    assert all(
        torch.equal(adapter_tensors(model)[key], tensor) for key, tensor in load_file("adapter.safetensors").items()
    )


@pytest.mark.long
def test_only_adapters_are_trained_and_what_was_saved_gives_the_same_loss(init: str) -> None:
    found = trained(init)
    checks = {check.name: check for check in found.checks}
    assert found.ok, found.checks
    assert checks["best, reopened, the same loss"].status == "PASS"
    assert checks["saved, reopened, the same loss"].status == "PASS"
    assert checks[RESUMED].status == "PASS"
    assert checks["frozen tensors did not move"].status == "PASS"
    assert not Path("run/best.safetensors").exists()
    before, after = load_file(init), load_file("run/last/model.safetensors")
    plain = {key: key.replace(".base_layer", "").replace(".original_module", "") for key in after}
    kept = [key for key, name in plain.items() if name in before]
    assert len(kept) == len(before)
    assert all(torch.equal(after[key], before[plain[key]]) for key in kept)  # statistics of the norm too
    assert after[CHANGED].norm() > 0


@pytest.mark.long
def test_peft_and_a_merge_of_ours_compute_what_the_run_did(init: str) -> None:
    trained(init)
    made = job(init, lora=LORA)
    batch = next(iter(made.train.read(0, 0)))
    model = saved_model(made, "run/adapter/adapter_model.safetensors").eval()
    wanted = model(batch.inputs, batch.lengths)
    theirs = peft.PeftModel.from_pretrained(made.model()[0], "run/adapter").eval()
    torch.testing.assert_close(theirs(batch.inputs, batch.lengths), wanted)
    plan = cs.lora_merge(init, "run/adapter")
    assert not plan.notes
    cs.apply(plan, "merged.safetensors")
    merged = made.empty_model().eval()
    merged.load_state_dict(load_file("merged.safetensors"))
    torch.testing.assert_close(merged(batch.inputs, batch.lengths), wanted)
    assert not torch.allclose(made.model()[0].eval()(batch.inputs, batch.lengths), wanted, atol=1e-2)


def test_the_adapter_s_files_are_those_of_peft(init: str) -> None:
    trained(init, lora={**LORA, "alpha": 3, "dropout": 0.1})
    config = json.loads(Path("run/adapter/adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 3, "lora_dropout": 0.1, "target_modules": ["first", "second"],
        "modules_to_save": ["head"], "base_model_name_or_path": init, "inference_mode": True,
    }  # fmt: skip
    assert config == config | expected
    keys = set(load_file("run/adapter/adapter_model.safetensors"))
    assert keys == {
        *(f"base_model.model.body.{name}.lora_{side}.weight" for name in ("first", "second") for side in "AB"),
        *(f"base_model.model.head.{name}" for name in ("weight", "bias")),
    }


def test_a_run_that_was_cut_goes_on_bit_for_bit(init: str) -> None:
    whole = loop(init, lora=LORA)
    whole.run()
    first = loop(init, lora=LORA, folder="run")
    first.run(until=6)
    second = loop(init, lora=LORA)
    second.state.restore(*first.folder.load())  # type: ignore[union-attr]
    second.run()
    assert equal(whole, second)


@pytest.mark.long
def test_the_average_is_that_of_adapters(init: str) -> None:
    found = trained(init, ema=0.5)
    assert found.ok, found.checks
    model = saved_model(job(init, lora=LORA), "run/adapter/adapter_model.safetensors")
    average = loop(init, lora=LORA, ema=0.5, folder="again")
    average.run(until=1)
    assert set(model.state_dict()) == set(average.model.state_dict())


@pytest.mark.parametrize(
    ("lora", "more", "why"),
    [
        ({"targets": ["secnd"]}, {}, "train.lora.targets has secnd, but no module of the model has that name"),
        ({"targets": ["second"], "save": ["haed"]}, {}, "train.lora.save has haed"),
        ({"targets": ["norm"], "save": ["head"]}, {}, "train.lora does not fit the model"),
        (
            {"targets": ["second"]},
            {},
            "with train.lora, tensors that are in no source would stay untrained: head.bias, head.weight",
        ),
        ({"rank": 8}, {}, "train.lora has no targets"),
        ({"targets": ["second"], "rank": 0}, {}, "train.lora.rank is 0; it must be 1 or more"),
        ({"targets": ["second"], "dropout": 1.0}, {}, "train.lora.dropout is 1.0"),
        ({"targets": ["second"]}, {"freeze": ["body"]}, "train.freeze applies to the weights"),
    ],
)
def test_what_cannot_be_trained_is_an_error(init: str, lora: dict[str, Any], more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as found:
        trained(init, lora=lora, **more)
    assert why in found.value.said
    assert not Path("run").exists()


def test_a_near_name_is_suggested(init: str) -> None:
    with pytest.raises(ConfigError, match="secnd") as found:
        trained(init, lora={"targets": ["secnd"]})
    assert found.value.hint == "Did you mean second?"


@pytest.mark.long
def test_an_adapter_of_another_model_is_not_loaded(init: str) -> None:
    trained(init)
    path = "run/adapter/adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "first" not in key}, path)
    with pytest.raises(ConfigError, match="is an adapter of another model"):
        saved_model(job(init, lora=LORA), path)


def test_an_adapter_that_is_damaged_is_an_error() -> None:
    Path("adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(cs.FormatError, match="adapter_model.safetensors is not a valid safetensors file"):
        load_adapter(torch.nn.Linear(1, 1), "adapter_model.safetensors")
    with pytest.raises(cs.SourceError, match="none.safetensors cannot be read"):
        load_adapter(torch.nn.Linear(1, 1), "none.safetensors")


def test_without_peft_the_extra_is_named(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match="peft") as found:
        trained(init)
    assert "ckptsurgeon[lora]" in found.value.hint


@pytest.mark.long
def test_the_command_says_how_to_merge(init: str, ckpt: Any) -> None:
    write(lora=LORA, steps=12)
    done = ckpt("train", "toy.yaml", "--init", init, "--run", "run")
    assert f"ckpt lora merge {init} run/adapter -o model.safetensors" in done.out, done.out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["train"]["lora"]["rank"] == 4
    Path("base").mkdir()  # a folder of weights is merged into a folder, with its configuration and tokeniser
    found = dataclasses.replace(read_report("run"), init="base")
    assert next_commands(found) == ["ckpt lora merge base run/adapter -o merged/"]
