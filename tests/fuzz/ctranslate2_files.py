"""CTranslate2: its settings, variables and aliases, and a weight of int8 with scales."""

import struct

from ..helpers.ctranslate2_files import FLOAT32, INT8, INT16, model, variable
from .target import Files, Target, written


def make() -> Files:
    variables = [
        variable("encoder/num_heads", [], INT16, struct.pack("<h", 2)),
        variable("encoder/conv1/bias", [2], FLOAT32, struct.pack("<2f", 1, 2)),
        variable("encoder/conv1/weight", [2, 1, 2], INT8, b"\1\2\3\4"),
        variable("encoder/conv1/weight_scale", [2], FLOAT32, struct.pack("<2f", 3, 4)),
    ]
    return {"model.bin": model(variables, [("decoder/weight", "encoder/conv1/weight")])}


TARGET = Target(written("model.bin"), make)
