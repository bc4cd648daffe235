"""A real trained network: wrapped as training scripts wrap theirs, moved into another model, loaded and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
WRITERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """The network as a training script would save it, in every variety."""
    folder = tmp_path_factory.mktemp("minilm")
    weights = {f"module.{key}": value for key, value in load_file(minilm / "model.safetensors").items()}
    parameters = [torch.nn.Parameter(weights["module.embeddings.LayerNorm.weight"])]
    state = {"model": weights, "optimizer": torch.optim.Adam(parameters).state_dict(), "epoch": 41}
    for name, options in WRITERS.items():
        torch.save(state, folder / f"{name}.pth", **options)
    for name in ("text_classifier.py", "text_classifier.yaml", "minilm.map"):
        shutil.copy(FIXTURES / name, folder / name)
    return folder


def plan(source: Path, name: str) -> cs.Plan:
    return cs.transplant(
        source / f"{name}.pth",
        source / "text_classifier.yaml",
        map_file=source / "minilm.map",
        exclude=["encoder.layer.{4,5}"],
        on_mismatch={"embed": "slice"},
        require=["layers", "embed"],
    )


@pytest.mark.long
def test_it_is_what_it_is(minilm: Path) -> None:
    found = cs.inspect(minilm)
    assert len(found.tensors) == 104
    assert found.parameters == 22_713_216
    assert found.metadata == {"format": "pt"}
    wanted = load_file(minilm / "model.safetensors")
    opened = cs.open_checkpoint(minilm)
    assert all(torch.equal(opened.tensor(key), value) for key, value in wanted.items())


@pytest.mark.costly
@pytest.mark.parametrize("name", WRITERS)
def test_every_variety_opens_at_its_model(source: Path, name: str) -> None:
    found = cs.inspect(source / f"{name}.pth")
    assert (found.root, found.stripped, len(found.tensors)) == ("model", ("module",), 104)
    assert {extra.key for extra in found.extras} == {"optimizer", "epoch"}
    assert found.parameters == 22_713_216


@pytest.mark.costly
@pytest.mark.parametrize("name", WRITERS)
def test_it_goes_into_a_smaller_classifier(
    source: Path, minilm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES))
    from text_classifier import TextClassifier  # type: ignore[import-not-found]

    made = plan(source, name)
    assert made.counts == {"copied": 67, "resized": 2, "initialised": 2}
    assert {key for _, key in made.unexpected} == {
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    cs.apply(made, "out.safetensors")
    checked = cs.verify("out.safetensors")
    assert checked.ok
    assert (checked.compared, checked.drawn, checked.nan, checked.inf) == (69, 2, 0, 0)

    model = TextClassifier(10_000, positions=256, layers=4, labels=3)
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    theirs = load_file(minilm / "model.safetensors")
    state = model.state_dict()
    assert torch.equal(state["embed.tokens.weight"], theirs["embeddings.word_embeddings.weight"][:10_000])
    assert torch.equal(state["embed.positions.weight"], theirs["embeddings.position_embeddings.weight"][:256])
    for step in made.steps:
        if step.kind == "copied":
            assert torch.equal(state[step.key], theirs[step.source_key])
    assert abs(state["classifier.weight"].std() * 384**0.5 - 1) < 0.1
    assert not state["classifier.bias"].any()


@pytest.mark.long
def test_the_same_bytes_whatever_file_it_came_from(source: Path) -> None:
    made = {}
    for name in WRITERS:
        cs.apply(plan(source, name), f"{name}.safetensors")
        found = cs.open_checkpoint(f"{name}.safetensors")
        recipe = json.loads(found.recipe or "")
        made[name] = {key: row["crc32"] for key, row in recipe["tensors"].items()}
    assert made["zip"] == made["legacy"] == made["protocol 4"]


def test_a_live_module_gets_the_same_values(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES))
    from text_classifier import TextClassifier

    cs.apply(plan(source, "zip"), "out.safetensors")
    model = TextClassifier(10_000, positions=256, layers=4, labels=3)
    before = model.classifier.weight.clone()
    rules = [line for line in (source / "minilm.map").read_text().splitlines() if line and line[0] != "#"]
    report = cs.load_into(
        model, source / "zip.pth", map=rules, exclude=["encoder.layer.{4,5}"], on_mismatch={"embed": "slice"}
    )
    assert report.counts == {"copied": 67, "resized": 2, "kept": 2}
    for key, value in load_file("out.safetensors").items():
        if not key.startswith("classifier"):
            assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(model.classifier.weight, before)
