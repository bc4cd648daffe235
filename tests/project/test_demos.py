"""The demos of ``fixtures/demos``: what they show is so."""

from __future__ import annotations

import importlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from ..trainer.together import alone

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
DEMOS = ("minilm", "espnet", "coqui", "speechbrain")
"""All but the one that trains, which takes minutes; tests/trainer has its parts."""
SHOWN = {
    "a trained network": ("load_state_dict(strict=True): 71 tensors", "verified text_classifier.init.safetensors"),
    "ESPnet": ("valid.acc.best.pth is a link to 40epoch.pth", "91 of 124 tensors are the English model's"),
    "Coqui STT": ("TensorFlow, converted to PyTorch's", "among 4 letters and the blank, the network says"),
    "SpeechBrain": (
        "embedding_model: 231 copied of 231 tensors\nclassifier: 1 resized of 1 tensor\n",
        "error: classifier: shape mismatch: weight is (7, 6) in classifier.ckpt, (9, 6)",
        "CKPT+second (WER 21.25, epoch 2, within an epoch, the most recent)",
    ),
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything that the demo prints. Its commands are forked from a process that has imported torch."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(command: Sequence[str], *, cwd: Path, stderr: int) -> SimpleNamespace:
        assert (command[1:3], stderr) == (["-m", "ckptsurgeon"], subprocess.STDOUT)
        code, said = alone(*command[3:], folder=cwd, environment=environment)
        print(said, end="")
        return SimpleNamespace(returncode=code)

    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as out:
        patched.chdir(folder)
        patched.syspath_prepend(ROOT / "fixtures")
        patched.setattr(sys, "argv", ["demo.py", "made", *DEMOS])
        patched.setattr(
            importlib.import_module("demos.stage"), "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT)
        )
        runpy.run_path(str(ROOT / "fixtures" / "demo.py"), run_name="__main__")
    return out.getvalue()


@pytest.mark.parametrize("demo", SHOWN)
def test_a_demo_shows_what_it_promises(shown: str, demo: str) -> None:
    for text in SHOWN[demo]:
        assert text in shown
