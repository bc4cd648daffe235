"""Folders of shards with their index: each file in turn."""

from pathlib import Path

from ..formats.test_sharded import shards
from .target import Files, Target, files_of, in_parts, numbered


def make() -> Files:
    shards("shards")
    assert Path("shards/model.safetensors.index.json").exists()
    return files_of("shards")


TARGET = Target(in_parts("shards"), make, numbered)
