"""NumPy's archives."""

import io

import numpy as np

from .target import Files, Target, written


def make() -> Files:
    out = io.BytesIO()
    np.savez(out, a=np.ones(2), b=np.asfortranarray(np.zeros((2, 3), ">f4")), c=np.array(["x"]))
    return {"three.npz": out.getvalue()}


TARGET = Target(written("x.npz"), make)
