"""The pickle machine."""

import pickle

from ckptsurgeon.formats.pickle.machine import load
from ckptsurgeon.formats.pickle.torch import rebuilders

from .target import Files, Target

VALUE = {"a": [1, 2.5, ("x", b"y")], "b": {None: True}}


def run(data: bytes) -> None:
    load(data, rebuild=rebuilders(), persistent=lambda pid: ("pid", pid))


def make() -> Files:
    return {f"protocol-{number}.pkl": pickle.dumps(VALUE, number) for number in range(6)}


TARGET = Target(run, make)
