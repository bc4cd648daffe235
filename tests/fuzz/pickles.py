"""The pickle machine."""

import pickle

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
from ckptsurgeon.formats._pickle import load
from ckptsurgeon.formats._rebuild import rebuilders

SEEDS = [pickle.dumps({"a": [1, 2.5, ("x", b"y")], "b": {None: True}}, protocol) for protocol in range(6)]

if __name__ == "__main__":
    fuzz(lambda data: load(data, rebuild=rebuilders(), persistent=lambda pid: ("pid", pid)), SEEDS)
