"""Variants of a real network, each trained for a task of its own: merged, they know both, and transformers opens them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs

pytestmark = pytest.mark.long

transformers = pytest.importorskip("transformers")

WORDS = {"numbers": range(2028, 2036), "colours": range(2417, 2425)}
"""Tokens, of which each task asks whether a sentence has one of the first or of the second half."""
STEPS = 15
ROWS, LAYERS = 9000, 4
"""As much of the real network as the tasks need: two thirds of its layers, and the rows of their tokens."""


def sentences(task: str, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token numbers (number, 6) and labels (number,): each sentence has one word of the task."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5000, 9000, (number, 6), generator=draw)
    labels = torch.randint(0, 2, (number,), generator=draw)
    words = torch.tensor(list(WORDS[task]))
    half = len(words) // 2
    picked = words[labels * half + torch.randint(0, half, (number,), generator=draw)]
    tokens[torch.arange(number), torch.randint(1, 6, (number,), generator=draw)] = picked
    tokens[:, 0] = 101
    return tokens, labels


def loss(model: nn.Module, task: str, seed: int) -> torch.Tensor:
    """The loss of a model in a task, through a head that is drawn once and never trained."""
    tokens, labels = sentences(task, 32, seed)
    draw = torch.Generator().manual_seed(list(WORDS).index(task))
    head = torch.randn(384, 2, generator=draw) / 384**0.5
    said = model(tokens).last_hidden_state.mean(1) @ head
    return nn.functional.cross_entropy(said, labels)


def opened(folder: Path) -> nn.Module:
    """Open a folder as transformers does; nothing may be missing, unexpected or of another shape."""
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Iterator[Path]:
    """The network, and what a few steps in each task make of it: folders of transformers."""
    root = tmp_path_factory.mktemp("variants")
    whole = json.loads((minilm / "config.json").read_text())
    config = {**whole, "vocab_size": ROWS, "num_hidden_layers": LAYERS}
    half = transformers.BertModel(transformers.BertConfig.from_dict(config))
    state = load_file(minilm / "model.safetensors")
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:ROWS]
    half.load_state_dict({name: value for name, value in state.items() if name in half.state_dict()})
    half.save_pretrained(root / "base")
    for task in WORDS:
        model = opened(root / "base")
        trained = [value for name, value in model.named_parameters() if name.startswith("encoder.")]
        optimizer = torch.optim.AdamW(trained, lr=2e-4)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(model, task, step).backward()
            optimizer.step()
        assert loss(model, task, seed=999) < 0.2, "training did not learn the task"
        shutil.copytree(root / "base", root / task)
        state = load_file(root / "base" / "model.safetensors")
        state.update({name: value.detach() for name, value in model.named_parameters() if name in state})
        save_file(state, root / task / "model.safetensors", metadata={"format": "pt"})
    yield root
    shutil.rmtree(root)


@cache
@torch.no_grad()
def losses_before(base: Path) -> dict[str, float]:
    """The losses of the network that all variants come from."""
    return losses(base)


@torch.no_grad()
def losses(folder: Path) -> dict[str, float]:
    model = opened(folder)
    return {task: float(loss(model, task, seed=999)) for task in WORDS}


METHODS = {
    "task_arithmetic": {"weight": 1.0},
    "ties": {"weight": 1.0, "density": 0.5},
    "dare_ties": {"weight": 1.0, "density": 0.7},
    "model_stock": {},
    "slerp": {"t": 0.5},
}


MOST = {"model_stock": 1.0}
"""Task vectors at right angles to each other: model stock stays near the base."""


@pytest.mark.parametrize("method", METHODS)
def test_what_is_merged_knows_both_tasks(method: str, variants: Path) -> None:
    start = losses_before(variants / "base")
    tasks = list(WORDS)
    models = [variants / task for task in tasks]
    base = None if method == "slerp" else variants / "base"
    cs.apply(cs.merge(models, method=method, base=base, **METHODS[method]), "merged/")  # type: ignore[arg-type]
    assert cs.verify("merged/").ok
    found = losses(Path("merged"))
    for task in tasks:
        assert found[task] < MOST.get(method, 0.3) * start[task], (task, start, found)
