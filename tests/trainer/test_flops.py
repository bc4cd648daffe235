"""Operations of a step: those of the formulas, counted without changing the step, and logged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ckptsurgeon.trainer.flops import Counted, peak_flops, peak_of
from ckptsurgeon.trainer.log import read_log, rows_of
from ckptsurgeon.trainer.settings import Settings
from ckptsurgeon.trainer.stepping import Stepped

from . import toy


def test_dense_and_recurrent_layers_are_counted_forwards_and_backwards() -> None:
    x = torch.randn(4, 10, 8, requires_grad=True)
    for model, forwards in (
        (nn.Linear(8, 16), 2 * 40 * 8 * 16),
        (nn.LSTM(8, 16, batch_first=True, bidirectional=True), 2 * 40 * (8 * 64 + 16 * 64) * 2),
    ):
        with Counted() as counted:
            found = model(x)
            found = found[0] if isinstance(found, tuple) else found
            assert counted.flops == forwards
            found.sum().backward()
        assert counted.flops == 3 * forwards


def test_counting_changes_nothing_and_is_logged() -> None:
    counted, plain = toy.loop(folder="run", steps=6), toy.loop(steps=6)
    plain._flops = 0.0
    for loop in (counted, plain):
        loop.run()
    assert toy.equal(counted, plain)
    rows = [row for row in read_log("run/log.jsonl") if "flops" in row]
    assert len(rows) == 6
    dense = 8 * 16 + 16 * 16
    places = 8 * 12  # clips and frames, of which the first layer's input needs no gradient
    assert rows[0]["flops"] == pytest.approx(2 * places * (3 * dense - 8 * 16), rel=0.05)
    assert "utilisation" not in rows[0]


def test_utilisation_is_a_share_of_a_known_peak() -> None:
    one = torch.zeros(())
    stepped = Stepped(one, {}, one, one, clips=2, seconds=0.0, used=5, room=10)
    (row,) = rows_of([(1, {}, stepped)], 0.0, flops=100.0, peak=1e3)
    assert row["flops"] == 1000
    assert row["utilisation"] == pytest.approx(row["clips_s"] / 2)
    assert peak_flops(Settings(), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L40", None, None),
    ],
)
def test_peaks_are_known_by_name(name: str, bf16: float | None, float32: float | None) -> None:
    assert (peak_of(name, "bf16"), peak_of(name, "float32")) == (bf16, float32)
