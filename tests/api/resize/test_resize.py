"""Every network is resized in every way that makes sense, opened by transformers, and run beside its source."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from fixtures.resizing.cases import CASES, CHANGED, EQUAL, Case
from fixtures.resizing.networks import NETWORKS

transformers = pytest.importorskip("transformers", minversion="5")

ALL = [(kind, name) for kind, cases in CASES.items() for name in cases]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a network with random weights."""
    folder = tmp_path_factory.mktemp("networks")

    @cache
    def saved(kind: str) -> Path:
        name, fields = NETWORKS[kind]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**fields))
            with torch.no_grad():
                for one in model.parameters():
                    if one.ndim == 1:  # norms of 1 and biases of 0 would hide errors
                        one.add_(torch.randn_like(one) * 0.1)
        model.save_pretrained(folder / kind)
        return folder / kind

    return saved


def outputs(folder: Path, kind: str) -> torch.Tensor:
    """Return what the network in a folder computes from inputs that are the same for each network of its type."""
    name, _ = NETWORKS[kind]
    model, loading = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30, (2, 12), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids}
    if kind == "wav2vec2":
        inputs = {"input_values": torch.randn(2, 400, generator=generator)}
    if kind in ("vit", "clip"):
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if kind == "clip":
        inputs["input_ids"] = ids
    if kind == "whisper":
        inputs = {"input_features": torch.randn(2, 20, 100, generator=generator), "decoder_input_ids": ids}
    if kind in ("t5", "bart"):
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        found = model.eval()(**inputs)
    result: torch.Tensor = found.logits_per_image if kind == "clip" else found.logits
    return result


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_network_of_another_size_loads_and_computes_as_it_is_said(
    kind: str, name: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    check(kind, CASES[kind][name], source(kind), tmp_path / "out")


@pytest.mark.parametrize("kind", ["llama", "whisper"])
def test_a_network_is_resized_in_every_way(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    for name, case in CASES[kind].items():
        check(kind, case, source(kind), tmp_path / name)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "whisper", "t5"])
def test_a_width_is_not_changed_while_the_output_layer_is_tied(kind: str, source: Callable[[str], Path]) -> None:
    fields = {name: value for name, value in CASES[kind]["wider"].set.items() if name != "tie_word_embeddings"}
    with pytest.raises(cs.PlanError, match="is tied to") as error:
        cs.resize(source(kind), set=fields)
    assert "tie_word_embeddings=false" in str(error.value.hint)


def check(kind: str, case: Case, folder: Path, output: Path) -> None:
    if case.expected not in (EQUAL, CHANGED):
        with pytest.raises((cs.PlanError, cs.ConfigError), match=case.expected):
            cs.resize(folder, set=case.set, **case.more)
        return
    plan = cs.resize(folder, set=case.set, **case.more)
    said = "the outputs stay equal" if case.expected == EQUAL else "the outputs change"
    assert any(note.endswith(said) for note in plan.notes), plan.notes
    assert not [key for _, key in plan.unexpected if "resized" in key]
    cs.apply(plan, output)
    assert not cs.verify(output).failed
    before, after = outputs(folder, kind), outputs(output, kind)
    difference = ((before - after).abs().max() / before.abs().max()).item()
    assert (difference < 1e-5) == (case.expected == EQUAL), difference
