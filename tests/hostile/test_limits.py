"""Each bound of ckptsurgeon/formats/base/limits.py: what is at it is read, what is just over it is refused by its rule.

The bounds are lowered to what the smallest file reaches, so that both sides take no time; what they are in truth is held by
test_costs.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from tests.formats.test_deepspeed_zero import zero_folder
from tests.formats.test_torch_dcp import save as save_dcp
from tests.helpers import tensorflow_files as tf
from tests.helpers.hdf5_files import GOLDEN as HDF5_FILES
from tests.helpers.hdf5_files import Blocks, contiguous
from tests.helpers.tar_files import STATE, archive, parts
from tests.helpers.whisper_cpp_files import model as whisper_model
from tests.helpers.whisper_cpp_files import tensor as whisper_tensor

from ..promises.clauses import LIMITS, clause
from .bombs import SIX_FLOATS, model_with, script, scripted, tensor, text, zipped
from .case import Refusal, broken, unsafe

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is ")


def of(data: bytes, path: str = "x.pth") -> Callable[[], str]:
    def make() -> str:
        Path(path).write_bytes(data)
        return path

    return make


def state(*more: bytes) -> bytes:
    """A state dict of one tensor, and entries beside it."""
    return zipped(b"}(" + text("w") + tensor() + b"".join(more) + b"u.", **SIX_FLOATS)


def tensors(number: int) -> bytes:
    return zipped(b"}(" + b"".join(text(str(i)) + tensor() for i in range(number)) + b"u.", **SIX_FLOATS)


def header(key: str) -> Callable[[], str]:
    def make() -> str:
        save_file({key: torch.ones(1)}, "x.safetensors")
        return "x.safetensors"

    return make


def index() -> str:
    save_file({"a": torch.ones(1)}, "m.safetensors")
    Path("m.index.json").write_text('{"weight_map":{"a":"m.safetensors"}}')
    return "m.index.json"


def dcp() -> str:
    save_dcp({"w": torch.ones(2), "v": torch.ones(3)}, "d")
    return "d"


def zero() -> str:
    zero_folder("d", 2, 2)
    return "d"


def bundle() -> str:
    tf.write("x", {"v": np.ones(2, "f4"), "w": np.ones(3, "f4")})
    return "x"


def expanded() -> str:
    torch.save({"w": torch.ones(1).expand(100)}, "x.pth")
    return "x.pth"


def hdf5() -> str:
    blocks = Blocks()
    root = blocks.group({"v": blocks.floats(), "w": blocks.dataset(contiguous(blocks.add(bytes(24)), 24))})
    return of(blocks.file(root), "x.h5")()


def newer_hdf5(name: str) -> Callable[[], str]:
    return of((HDF5_FILES / name).read_bytes(), "x.h5")


whisper_cpp = of(whisper_model(whisper_tensor("w", (1,), 0, bytes(4))), "x.bin")
TAR = archive(parts())


def described_bytes() -> int:
    """Those of the pickles in the member with the most of them: what is left without numbers and data."""
    files = parts()
    numbers = sum(8 + 16 * tensor.dim() + 8 for tensor in STATE.values())
    data = sum(8 + tensor.nbytes for tensor in STATE.values())
    return max(len(files["tensors"]) - numbers, len(files["storages"]) - data)


PICKLED = b"}(" + text("w") + tensor() + b"u."

BOUNDS: dict[str, tuple[Callable[[], str], int, Refusal]] = {
    "PICKLE_BYTES": (of(zipped(PICKLED, **SIX_FLOATS)), len(PICKLED), unsafe("record size")),
    "PICKLE_DEPTH": (of(state()), 3, unsafe("pickle depth")),
    "PICKLE_NAMES": (of(state()), 2, unsafe("pickle names")),
    "PICKLE_CALLS": (of(state()), 1, unsafe("pickle calls")),
    "NUMBER_BYTES": (of(state(text("a") + b"\x8b" + struct.pack("<i", 9) + b"\1" * 9)), 9, unsafe("integer size")),
    "TAR_PICKLES_BYTES": (of(TAR, "x.pt"), described_bytes(), unsafe("tar pickles")),
    "TAR_RECORDS_BYTES": (of(TAR, "x.pt"), len("22 mtime=1480000000.5\n"), broken("tar header")),
    "DIMENSIONS": (of(zipped(model_with(tensor(b"K\2K\3\x86", b"K\3K\1\x86")), **SIX_FLOATS)), 2, broken("tensor size")),
    "TENSORS": (of(tensors(3)), 3, unsafe("tensors")),
    "ZIP_ENTRIES": (of(state()), 2, unsafe("zip entries")),
    "JSON_HEADER_BYTES": (header("a"), 56, broken("HeaderTooLarge")),
    "JSON_OPENED": (header("a"), 4, broken("InvalidHeaderDeserialization")),
    "JSON_COMMAS": (header("a"), 3, broken("InvalidHeaderDeserialization")),
    "HDF5_METADATA": (hdf5, 436, unsafe("hdf5 metadata")),
    "HDF5_CHECKED": (newer_hdf5("few_v108.h5"), 1424, unsafe("hdf5 metadata")),
    "HDF5_MESSAGES": (hdf5, 3, unsafe("hdf5 messages")),
    "HDF5_CHUNKS": (newer_hdf5("few_v108.h5"), 4, unsafe("hdf5 chunks")),
    "WHISPER_TOKENS": (whisper_cpp, 3, unsafe("counts")),
    "WHISPER_TOKEN_BYTES": (whisper_cpp, 4, unsafe("token size")),
    "GGUF_HEADER_BYTES": (whisper_cpp, 56 + 4 * 8 * 5, unsafe("header size")),
    "INDEX_BYTES": (index, 36, broken("index size")),
    "KEY_CHARACTERS": (header("k" * 300), 300, broken("key length")),
    "KEY_SEGMENTS": (header("a.b.c"), 3, broken("key length")),
    "SEGMENTS": (header("a.b.c"), 3, unsafe("segments")),
    "PIECES": (dcp, 2, unsafe("pieces")),
    "ZERO_PIECES": (zero, 12, unsafe("pieces")),
    "SHARDS": (bundle, 1, broken("shards")),
    "PATH_CHARACTERS": (of(script(scripted(text("w") + tensor())), "x.pt"), 1, unsafe("module tree")),
}  # fmt: skip


@clause(LIMITS)
@pytest.mark.parametrize("name", BOUNDS)
def test_at_a_bound_is_read_and_over_it_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, most, refusal = BOUNDS[name]
    path = make()
    if name == "SEGMENTS":
        monkeypatch.setattr(limits, "SEGMENTS_EACH", 0)
    monkeypatch.setattr(limits, name, most)
    assert len(cs.open_checkpoint(path)) > 0
    monkeypatch.setattr(limits, name, most - 1)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint(path)
    assert (type(caught.value).__name__, caught.value.rule) == (refusal.error, refusal.rule), caught.value


def test_every_bound_has_its_reason() -> None:
    """A text stands behind each, or behind the last of a few that belong together."""
    lines = Path(str(limits.__file__)).read_text().split("\n\n")
    for block in lines[1:]:
        if re.search(r"^[A-Z_]+ = ", block, re.M):
            assert '"""' in block, block
