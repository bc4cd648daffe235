"""TorchScript's archives: each record in turn, its checksum made anew."""

from ..hostile.bombs import long_script_names
from .target import Files, Target, in_parts, numbered


def make() -> Files:
    return {"module.pt": long_script_names(3, 2)}


TARGET = Target(in_parts("scripts", path="module.pt"), make, numbered)
