"""The promises of docs/explanation/safety.md, in its three sections and in its order."""

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
RANKS = "Folders with a file for each rank"
NUMPY = "NumPy's files"
TENSORFLOW = "TensorFlow's checkpoints"
GGUF = "GGUF files"
WHISPER_CPP = "Model files of whisper.cpp"
CTRANSLATE2 = "Files of CTranslate2"
ONNX = "ONNX models, and the files beside them"
FLAX = "msgpack files of Flax"
ORBAX = "Folders of Orbax"
HDF5 = "HDF5 files"
EXPORT = "Programs of torch.export"
PICKLED = "Pickles of numpy's arrays"
PADDLE = "Files of PaddlePaddle"
SPECIAL = "FIFOs, devices, sockets, links to nowhere and to themselves"
INPUTS = "Plans, recipes, configurations, vocabularies and map files"
MUTATED = "Sound files with bytes flipped, cut, spliced or edited"
SHOWN = "Names and metadata on terminals and in JSON"

FULL = "A disk that is full, and a file that is larger than is allowed"
FAILING = "A call that fails"
OTHERWISE = "A call that the kernel or the file system does not have: it is done otherwise"
KILLED = "Killed at every call, and at random moments"
POWER = "A power cut, on ext4 and XFS"
UNFLUSHED = "Written, and then not flushed to disk"
UNREADABLE = "A source that cannot be read in the middle"
MEMORY = "Little memory"
REFLINKS = "File systems with reflinks and without, and copies between them: the same bytes"
WRITERS = "Two writers of one output"
PROCESSES = "Several processes: one killed at each phase, a clock that jumps, files that are seen late"

SENT = "Answers of a server that are short, wrong, late, refused or of another file"
KEPT = "What stood there before a fault is there after it"
MOVED = "A branch that moves, a server that asks for time, a host that redirects"
BROKEN_OFF = "Fetching that is killed at random moments"
ELSEWHERE = "Names of a hub, and links in its cache, that lead out of it"
PLACED = "Links, files, folders and names in the way of what was fetched"

OPENING = (
    NEVER_RUN, PICKLE, COSTS, LIMITS, CLAIMS, ZIP_NAMES, ZIP_PLACES, ZIP_PACKED, CHECKSUM, LEGACY, SCRIPT, SAFETENSORS,
    INDEX, DCP, ZERO, RANKS, NUMPY, TENSORFLOW, GGUF, WHISPER_CPP, CTRANSLATE2, ONNX, FLAX, ORBAX, HDF5, EXPORT, PICKLED, PADDLE, SPECIAL, INPUTS, MUTATED, SHOWN,
)  # fmt: skip
WRITING = (FULL, FAILING, OTHERWISE, KILLED, POWER, UNFLUSHED, UNREADABLE, MEMORY, REFLINKS, WRITERS, PROCESSES)
FETCHING = (SENT, KEPT, MOVED, BROKEN_OFF, ELSEWHERE, PLACED)

SECTIONS = {"hostile": OPENING, "faults": WRITING, "storage/fetch": FETCHING}
"""The folder of the tests that hold a section's promises, and the promises."""


def clause(name: str) -> pytest.MarkDecorator:
    """Mark a test as a case of a promise."""
    assert any(name in clauses for clauses in SECTIONS.values()), name
    return pytest.mark.clause(name)
