"""GGUF: its metadata, the headers of its tensors, and one with quantised rows."""

import struct

from ..helpers.gguf_files import ARRAY, STRING, UINT32, array, gguf, tensor_info, text
from .target import Files, Target, written


def make() -> Files:
    words = b"".join(text(f"t{place}") for place in range(20))
    entries = {
        "general.architecture": (STRING, text("llama")),
        "general.alignment": (UINT32, struct.pack("<I", 32)),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, 20, words)),
        "some.numbers": (ARRAY, array(UINT32, 2, struct.pack("<2I", 1, 2))),
    }
    infos = [tensor_info("a", [2, 3], 0, 0), tensor_info("b.q", [32, 2], 2, 32)]
    return {"two.gguf": gguf(infos, entries, bytes(24 + 8 + 36 + 28))}


TARGET = Target(written("x.gguf"), make)
