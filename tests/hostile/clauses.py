"""The promises about files that nobody vouches for, in the order in which the documentation lists them."""

from __future__ import annotations

import pytest

NEVER_RUN = "Nothing that a file names is imported or called"
PICKLE = "Pickles that are malformed"
COSTS = "Files that would cost too much time or memory"
LIMITS = "Each bound: what is at it is read, what is just over it is refused"
CLAIMS = "Tensors that claim what they do not have, and records of another length than their storage"
ZIP_NAMES = "Archives: names twice, differing in case, in two roots, or outside"
ZIP_PLACES = "Archives: local headers, descriptors and places that contradict the directory"
ZIP_PACKED = "Archives: encrypted, compressed, split, cut short, or with bytes in front or behind"
CHECKSUM = "Records whose checksum is wrong, where they are copied or computed with"
LEGACY = "Files from before torch 1.6, and tar archives"
SCRIPT = "TorchScript archives"
SAFETENSORS = "safetensors, as strictly as the reference and more strictly"
INDEX = "Indexes of shards"
DCP = "Folders of torch.distributed.checkpoint"
ZERO = "Folders of DeepSpeed ZeRO"
NUMPY = "NumPy's files"
TENSORFLOW = "TensorFlow's checkpoints"
SPECIAL = "FIFOs, devices, sockets, links to nowhere and to themselves"
INPUTS = "Plans, recipes, configurations, vocabularies and map files"
MUTATED = "Sound files with bytes flipped, cut, spliced or edited"
SHOWN = "Names and metadata on terminals and in JSON"

CLAUSES = (
    NEVER_RUN, PICKLE, COSTS, LIMITS, CLAIMS, ZIP_NAMES, ZIP_PLACES, ZIP_PACKED, CHECKSUM, LEGACY, SCRIPT, SAFETENSORS,
    INDEX, DCP, ZERO, NUMPY, TENSORFLOW, SPECIAL, INPUTS, MUTATED, SHOWN,
)  # fmt: skip


def clause(name: str) -> pytest.MarkDecorator:
    """Mark a test as a case of a promise."""
    assert name in CLAUSES, name
    return pytest.mark.clause(name)
