"""Folders of DeepSpeed ZeRO: the states of the model and of each rank in turn."""

from ..formats.test_deepspeed_zero import zero_folder
from .target import Files, Target, files_of, in_parts, numbered


def make() -> Files:
    zero_folder("zero", 2, 2)
    return files_of("zero")


TARGET = Target(in_parts("zero"), make, numbered)
