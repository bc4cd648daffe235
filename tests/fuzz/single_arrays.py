"""NumPy's files of one array."""

import io

import numpy as np

from .target import Files, Target, written


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def make() -> Files:
    return {"plain.npy": npy(np.ones(2)), "fortran.npy": npy(np.asfortranarray(np.zeros((2, 3), ">f4")))}


TARGET = Target(written("x.npy"), make)
