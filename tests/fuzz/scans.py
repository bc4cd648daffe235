"""``ckpt scan``: pickles, archives, and whatever looks like them."""

import pickle

import ckptsurgeon as cs

from ..analysis.scan.hostile import as_legacy, as_torch_zip
from ..hostile.bombs import SIX_FLOATS, model_with, tensor, zipped
from .target import Files, Target, written

CALL = b"cposix\nsystem\n(S'true'\ntR."
"""What is scanned is never run."""


def make() -> Files:
    made = {f"plain-{number}.pkl": pickle.dumps({"a": [1, 2.5, ("x", b"y")]}, number) for number in (0, 2, 5)}
    zips = {"call.pth": as_torch_zip(CALL), "deflated.pth": zipped(model_with(tensor()), 8, **SIX_FLOATS)}
    return {**made, **zips, "call.pkl": CALL, "call.pt": as_legacy(CALL), "notes.txt": b"the words\n" + CALL}


TARGET = Target(written("x.pkl", cs.scan), make)
