"""One arm, in this process."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from ckptsurgeon.trainer.system.flops import peak_of

from .arms import Arm, arm_of
from .ours import train_ours
from .published import train_published
from .strong import train_strong
from .window import Window
from .work import RATE, Work, work_of

__all__ = ["LOOPS", "WARM_UP", "measure"]

WARM_UP = 5
"""Steps before the first turn: operations are counted in the first, and the second is compiled."""
LOOPS: dict[str, Callable[[Arm, Work, Window, argparse.Namespace], Any]] = {
    "ours": train_ours, "published": train_published, "strong": train_strong
}  # fmt: skip
Row = dict[str, Any]


def measure(
    name: str, options: argparse.Namespace, *, turns: int = 1, wait: Callable[[], None] = lambda: None,
    tell: Callable[[Row], None] = lambda row: None,
) -> Row:  # fmt: skip
    """Train as an arm does, in a folder of its own that goes with it; returns what was seen in the last turn.

    ``wait`` is called before each turn, ``tell`` with what was seen after it.
    """
    arm = arm_of(name)
    work, device = work_of(arm.work, tiny=options.tiny), torch.device(options.device)
    rows: list[Row] = []

    def told(window: Window) -> None:
        rows.append(_seen(arm, window))
        tell(rows[-1])

    window = Window(device, WARM_UP, options.steps, settle=work.read_ahead, turns=turns, wait=wait, tell=told)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, contextlib.chdir(folder):
        LOOPS[arm.loop](arm, work, window, options)
    return rows[-1]


def _seen(arm: Arm, window: Window) -> Row:
    gpu = torch.cuda.get_device_name(window.device) if window.device.type == "cuda" else ""
    flops_s = window.flops_per_place * window.places / window.seconds
    peak = peak_of(gpu, arm.precision)
    return {
        "arm": arm.name, "device": gpu or "cpu", "torch": torch.__version__, "steps": window.steps,
        "parameters": window.parameters, "step_ms": round(1000 * window.seconds / window.steps, 3),
        "clips_s": round(window.clips / window.seconds, 2), "audio_s_s": round(window.audio_s / window.seconds, 1),
        "padding": round(1 - window.audio_s * RATE / window.places, 4), "tflops_s": round(flops_s / 1e12, 4),
        "flops_per_audio_s": round(window.flops_per_place * window.places / window.audio_s),
        "utilisation": None if peak is None else round(flops_s / peak, 4), "peak_bytes": window.peak_bytes,
    }  # fmt: skip
