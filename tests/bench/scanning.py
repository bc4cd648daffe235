"""The rows of ``scan``: a folder of 100 MB that is mostly pickles, against cutting the same pickles with pickletools."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import ckptsurgeon as cs

from .harness import Row, ckpt, python, rounds, run

__all__ = ["scanning"]

FILES = """
import os, pickle, random, numpy, torch
scale = {scale}
os.mkdir("scanned")
random.seed(0)
numpy.random.seed(0)
def tensors(number, size):
    return {{f"model.layers.{{i // 40}}.sub.{{i % 40}}.weight": torch.zeros(size) for i in range(number)}}
for i in range(2):
    torch.save(tensors(int(40_000 * scale), 64), f"scanned/zip{{i}}.pth")
torch.save(tensors(int(40_000 * scale), 64), "scanned/legacy.pth", _use_new_zipfile_serialization=False)
arrays = {{f"features.{{i}}": numpy.random.rand(80, 10).astype("float32") for i in range(int(6000 * scale))}}
curves = {{"loss": [random.random() for _ in range(int(600_000 * scale))], "step": list(range(int(600_000 * scale)))}}
with open("scanned/arrays.pkl", "wb") as file:
    pickle.dump(arrays, file, 4)
with open("scanned/curves.pkl", "wb") as file:
    pickle.dump(curves, file, 4)
texts = [{{"text": "the words of sentence number %d, as they were said" % i, "id": i}} for i in range(int(60_000 * scale))]
with open("scanned/texts.pkl", "wb") as file:
    pickle.dump(texts, file, 4)
"""

GENOPS = """
import os, pickletools, zipfile
for name in sorted(os.listdir("scanned")):
    path = os.path.join("scanned", name)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = next(archive.read(one) for one in archive.namelist() if one.endswith("data.pkl"))
    else:
        with open(path, "rb") as file:
            data = file.read()
    at = 0
    while at < len(data) and data[at] == 0x80:
        at += max(where for _, _, where in pickletools.genops(data[at:])) + 1
"""


def scanning(folder: str, number: int, scale: float = 1.0) -> Iterator[Row]:
    """Scanning takes a second of the processor's time for 50 MB, where most of what there is is pickles."""
    run(python(FILES.format(scale=scale)), folder)
    scanned = os.path.join(folder, "scanned")
    nbytes = sum(os.path.getsize(os.path.join(scanned, name)) for name in os.listdir(scanned))
    seconds = statistics.median(_seconds(scanned) for _ in range(number))
    said = f"{nbytes / 1e6 / seconds:.0f} MB/s"
    yield Row(
        f"processor time of a scan of {nbytes / 1e6:.0f} MB, for each 50 MB", seconds * 50e6 / nbytes, 1, "s", said
    )
    seen = rounds({"scan": ckpt("scan", "scanned", "-q"), "genops": python(GENOPS)}, folder, number=number)
    ours, theirs = seen["scan"].time, seen["genops"].time
    yield Row(
        "that scan, whole process / pickletools.genops", ours / theirs, 0.75, seen=f"{ours:.2f} s / {theirs:.2f} s"
    )


def _seconds(scanned: str) -> float:
    began = time.process_time()
    cs.scan(scanned)
    return time.process_time() - began
