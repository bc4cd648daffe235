"""A search whose judge is ``ckpt train --evaluate``: models that ckpt can train need no script."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ...trainer import toy


@pytest.mark.long
def test_a_model_that_ckpt_trains_needs_no_script() -> None:
    toy.train_source(steps=20)
    toy.make_init("head")
    trained = cs.train("toy.yaml", init="toy.init.safetensors", run="run", device="cpu")
    entry = {"model": "toy.init.safetensors", "parameters": {"weight": {"search": [0, 1], "name": "old"}}}
    other = {"model": "run/best.safetensors", "parameters": {"weight": 1}}
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "linear", "models": [entry, other]}))
    judge = f"{shlex.quote(sys.executable)} -m ckptsurgeon train toy.yaml --init {{model}} --device cpu --evaluate dev"
    found = cs.search("recipe.yaml", "out.safetensors", evaluate=judge, maximize=True, trials=2, sampler="grid")
    scores = {one.values["old"]: one.score for one in found.trials}
    assert scores[0.0] == pytest.approx(trained.best, rel=1e-5)
    assert sorted(scores) == [0.0, 1.0]
    assert found.best.score == max(scores.values())
    assert cs.verify("out.safetensors").ok
