"""The rows of configurations of transformers, whose keys and shapes are kept once a model was built."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .harness import Row, ckpt, python, rounds, run

__all__ = ["builds"]

FILES = """
import json
from pathlib import Path
import transformers
models = {
    "BertForSequenceClassification": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
    "Wav2Vec2ForCTC": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 12},
}
for name, fields in models.items():
    found = getattr(transformers, name)
    found._from_config(found.config_class(**fields)).save_pretrained(name)
"""
MODELS = ("BertForSequenceClassification", "Wav2Vec2ForCTC")


def builds(folder: str, number: int) -> Iterator[Row]:
    """Time of a whole command whose destination is a config.json: without the cache, and the second time with it.

    The limit is for seconds of the processor: the command is one thread, and other work makes half a second twice as long.
    """
    run(python(FILES), folder)
    os.environ["CKPTSURGEON_CACHE"] = os.path.join(folder, "cache")

    def clean() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "built.safetensors"))

    for name in MODELS:
        paths = (name, f"{name}/config.json")
        commands = {
            "transplant -n": ckpt("transplant", *paths, "-n", "-q"),
            "transplant": ckpt("transplant", *paths, "-o", "built.safetensors", "-q"),
            "match": ckpt("match", *paths, "-q"),
            "fits": ckpt("fits", *paths, "-q"),
            "built": ["env", "CKPTSURGEON_NO_BUILDS=1", *ckpt("transplant", *paths, "-n", "-q")],
        }
        seen = rounds(commands, folder, before=clean, number=number)
        built = seen.pop("built")
        for verb, kept in seen.items():
            said = f"{kept.time:.2f} s of time; -n without the cache: {built.processor:.2f} s and {built.time:.2f} s"
            yield Row(f"{verb} into {name}/config.json, again, CPU", kept.processor, 0.5, unit="s", seen=said)
