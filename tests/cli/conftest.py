"""Files to run the command on, and golden texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden"


class Speech(nn.Module):
    """An encoder of repeated layers, a decoder whose output is tied, a CTC head."""

    def __init__(self, vocab: int = 33) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "embed": nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)),
                "layers": nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(4)),
            }
        )
        self.decoder = nn.ModuleDict({"embed": nn.Embedding(vocab, 16), "out": nn.Linear(16, vocab, bias=False)})
        self.decoder["out"].weight = self.decoder["embed"].weight  # type: ignore[assignment]
        self.ctc = nn.Linear(16, vocab)
        self.normalize = nn.BatchNorm1d(16)


def training_checkpoint(path: str, vocab: int = 33) -> Speech:
    torch.manual_seed(0)
    net = Speech(vocab)
    optimizer = torch.optim.Adam(net.parameters())
    torch.save(
        {
            "model": {f"module.{k}": v for k, v in net.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "epoch": 41,
            "best": 0.25,
        },
        path,
    )
    return net


@pytest.fixture
def files() -> Speech:
    return speech_files()


def speech_files() -> Speech:
    """Write a checkpoint and a destination with a larger vocabulary; the picture in the README is of them too."""
    net = training_checkpoint("best.pth")
    for name, letters in (("en", ascii_lowercase), ("ru", "абвгдеёжзийклмнопрстуфхцчшщъыьэюя")):
        Path(f"{name}.txt").write_text(
            "\n".join(["<blank>", "<unk>", "<space>", *letters, "'", "-", ".", "<eos>"]) + "\n"
        )
    rows = []
    for key, value in Speech(40).state_dict().items():
        if not key.startswith("normalize"):
            init = "zeros" if value.ndim < 2 else "{uniform: {a: -0.1, b: 0.1}}"
            rows.append(f"    {key}: {{shape: {list(value.shape)}, dtype: {str(value.dtype)[6:]}, init: {init}}}")
    tied = "  tied: [[decoder.embed.weight, decoder.out.weight]]\n"
    Path("ru.yaml").write_text("model:\n  tensors:\n" + "\n".join(rows) + "\n" + tied)
    return net


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the one that is kept; UPDATE_GOLDEN=1 keeps it anew."""

    def compare(name: str, text: str) -> None:
        text = re.sub(r"\d+\.\d s\b", "0.0 s", text)
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text()

    return compare
