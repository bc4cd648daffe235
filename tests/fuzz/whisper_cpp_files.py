"""Model files of whisper.cpp: its tokens, and tensors of several types and shapes."""

from ..helpers.whisper_cpp_files import model, tensor
from .target import Files, Target, written


def make() -> Files:
    plain = tensor("encoder.conv1.bias", (1, 3), 0, bytes(12)), tensor("w", (3, 2, 2), 1, bytes(24))
    return {"one.bin": model(*plain), "two.bin": model(tensor("q", (32, 2), 7, bytes(48)), *plain, ftype=2009)}


TARGET = Target(written("x.bin"), make)
