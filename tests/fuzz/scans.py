"""What ``ckpt scan`` decodes: pickles, archives and whatever looks like them."""

import pickle

from tests.fuzz.target import fuzz, written

# isort: split
# what is imported before atheris is not instrumented
import ckptsurgeon as cs
from tests.scanning.hostile import by_hand

if __name__ == "__main__":
    plain = [pickle.dumps({"a": [1, 2.5, ("x", b"y")], "b": {None: True}}, protocol) for protocol in range(6)]
    fuzz(written("x.pkl", cs.scan), [*plain, *by_hand().values()])
