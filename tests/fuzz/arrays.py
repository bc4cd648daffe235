"""NumPy's archives."""

import io

import numpy as np

from tests.fuzz.target import fuzz, opened

OUT = io.BytesIO()
np.savez(OUT, a=np.ones(2), b=np.asfortranarray(np.zeros((2, 3), ">f4")), c=np.array(["x"]))

if __name__ == "__main__":
    fuzz(opened("x.npz"), [OUT.getvalue()])
