"""Pre-training in miniature: it learns, and its body trains under a new alphabet. Half a minute; to its end by make test-speech."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptsurgeon.trainer.speech.demo import demo_data

from ..helpers.examples import ROOT, Reader, examples
from .conftest import reopen_here
from .waves import MINIATURE

pytest.importorskip("transformers")
TOKENS = ["<pad>", "|", *"abcdefghijklmnopqrstuvwxyz'"]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("another_process")
def test_it_learns_and_its_body_trains_under_a_new_alphabet(
    ckpt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens what pre-training saved, and this one what fine-tuning did."""
    demo_data("demo", ["en"], n=200)
    Path("net.json").write_text(json.dumps(MINIATURE))
    Path("tokens.txt").write_text("\n".join(TOKENS) + "\n")
    data = {"train": "demo/en/train.csv", "dev": "demo/en/dev.csv"}
    pretraining = {
        "task": "wav2vec2_pretrain", "data": {**data, "min_s": 1.0}, "features": {"kind": "waves"},
        "pretrain": {"crop_s": 1.0, "gumbel": [2.0, 0.5, 0.999], "diversity": 0.03}, "batch_size": 8, "steps": 120, "lr": 5e-3,
        "betas": [0.9, 0.98], "eps": 1e-6, "warmup": 20, "schedule": "linear", "final_lr": 0.1, "clip": 1.0,
    }  # fmt: skip
    tuning = {
        "task": "wav2vec2_ctc", "data": {**data, "tokens": "tokens.txt"}, "features": {"kind": "waves"},
        "batch_size": 8, "steps": 20, "lr": 1e-3, "warmup": 5, "evaluate_every": 20,
        "freeze": ["wav2vec2.feature_extractor"],
    }  # fmt: skip
    model = {"transformers": "net.json"}
    Path("pre.yaml").write_text(yaml.safe_dump({"model": model, "train": pretraining}))
    head = {**model, "architecture": "Wav2Vec2ForCTC", "vocab_size": len(TOKENS)}
    Path("ctc.yaml").write_text(yaml.safe_dump({"model": head, "train": tuning}))

    done = ckpt("train", "pre.yaml", "--run", "pre", "--json")
    assert done.code == 0, done
    figures = json.loads(done.out)["figures"]
    assert figures["contrastive"] < 2.8, figures  # ln 21, which is 3.04, without knowledge
    assert figures["accuracy"] > 3 / 21, figures  # three times what chance gives
    assert figures["perplexity"] > 4, figures

    done = ckpt("transplant", "pre/best.safetensors", "ctc.yaml", "--require", "wav2vec2")
    assert done.code == 0, done
    reopen_here(monkeypatch)
    done = ckpt("train", "--run", "tuned", "--json")  # takes the one init that lies here
    found = json.loads(done.out)
    checks = {check["name"]: check["status"] for check in found["checks"]}
    for name in (
        "loaded tensors equal their source",
        "frozen tensors did not move",
        "loss fell",
        "trained tensors moved",
    ):
        assert checks[name] == "PASS", (name, checks)
    assert found["figures"]["loss"] < 6, found["figures"]


@pytest.mark.speech
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("another_process")
def test_the_page_trains_to_letters_that_transformers_transcribes(ckpt: Callable[..., Any]) -> None:
    reader = Reader(ckpt, {})
    for example in examples(ROOT / "docs/howto/wav2vec2.md"):
        reader.run(example)
    found = json.loads(Path("letters/result.json").read_text())
    assert found["best"] < 0.15, found["figures"]
    assert all(check["status"] != "FAIL" for check in found["checks"]), found["checks"]
    body = json.loads(Path("body/result.json").read_text())["figures"]
    assert body["accuracy"] > 0.35, body
    assert {"config.json", "preprocessor_config.json", "vocab.json"} <= {
        one.name for one in Path("letters-hf").iterdir()
    }
