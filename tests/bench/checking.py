"""The rows of ``check``: a file of 2 GB against ``cat`` of it, in time and in memory over a bare Python."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from ckptsurgeon.tensors.ops.small_floats import to_small

from .harness import MB, Row, ckpt, python, rounds

__all__ = ["checking"]

DTYPES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
WIDTH, INNER, TOKENS = 2048, 5632, 32000
SHAPES = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
START_S = 0.5
"""Seconds that a check may take beside reading: Python, numpy and the header."""


def checking(folder: str, number: int, scale: float = 1.0) -> Iterator[Row]:
    """A check takes at most half as long again as ``cat`` and half a second, and 100 MB, for a file that is cached."""
    for dtype in DTYPES:
        path = _make(folder, dtype, int(2e9 * scale))
        commands = {
            "cat": ["sh", "-c", f"cat {path} > /dev/null"],
            "check": ckpt("check", path, "-q"),
            "bare": python("pass"),
        }
        seen = rounds(commands, folder, number=number)
        ours, cat = seen["check"], seen["cat"]
        said = f"{ours.time:.2f} s, {ours.processor:.2f} s of processors / cat {cat.time:.2f} s"
        size = f"{os.path.getsize(os.path.join(folder, path)) / 1e9:.1f} GB of {dtype}"
        yield Row(f"check of {size} / (1.5 cat + 0.5 s)", ours.time / (1.5 * cat.time + START_S), 1, seen=said)
        yield Row(f"its memory over a bare Python, {dtype}", (ours.peak - seen["bare"].peak) / MB, 100, "MB")
        os.remove(os.path.join(folder, path))


def _make(folder: str, dtype: str, nbytes: int) -> str:
    """Write a safetensors file of random weights, as a Llama with an embedding and so many layers as fit."""
    shapes = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    size, layer = TOKENS * WIDTH * DTYPES[dtype], 0
    while size < nbytes:
        for name, shape in SHAPES.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            size += shape[0] * shape[1] * DTYPES[dtype]
        layer += 1
    header, at = {}, 0
    for key, shape in shapes.items():
        end = at + shape[0] * shape[1] * DTYPES[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    path = f"checked-{dtype}.safetensors"
    with open(os.path.join(folder, path), "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for seed, shape in enumerate(shapes.values()):  # no two alike: copies would be read twice
            file.write(_weights(shape[0] * shape[1], dtype, seed))
    return path


def _weights(number: int, dtype: str, seed: int) -> bytes:
    import numpy as np

    draw = np.random.default_rng(seed)
    values = draw.standard_normal(number, dtype=np.float32) * np.float32(0.02)
    if dtype == "F8_E4M3":  # scaled, so that the largest is about that of the dtype
        return to_small(values * np.float32(448 / 0.12), "float8_e4m3fn").tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()
