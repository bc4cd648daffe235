"""The demos of ``fixtures/demos``: what they show is so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
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
    """Everything that the demo prints."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(FIXTURES / "demo.py"), "made", *DEMOS],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("demo", SHOWN)
def test_a_demo_shows_what_it_promises(shown: str, demo: str) -> None:
    for text in SHOWN[demo]:
        assert text in shown
