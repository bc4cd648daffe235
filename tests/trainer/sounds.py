"""Sounds and lists of them, tiny, for the tests of what is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CLIPS = Path(__file__).parents[2] / "fixtures" / "clips"


def tone(path: str, seconds: float = 0.2, *, hertz: float = 440, rate: int = RATE, channels: int = 1) -> str:
    """Write a tone, with a little noise so that no two frames are the same."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * np.random.default_rng(int(hertz)).standard_normal(len(time))
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate)
    return path


def corpus(path: str, texts: Sequence[str], *, shortest: float = 0.2) -> str:
    """Write a Coqui CSV and a tone for each of its texts, each a little longer than the one before."""
    stem = Path(path).stem
    rows = ["wav_filename,transcript"]
    for number, text in enumerate(texts):
        tone(str(Path(path).parent / f"{stem}-{number}.wav"), shortest + 0.01 * number, hertz=300 + 40 * number)
        rows.append(f"{stem}-{number}.wav,{text}")
    Path(path).write_text("\n".join(rows) + "\n")
    return path
