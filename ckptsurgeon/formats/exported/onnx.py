"""Reads the initialisers of an ONNX model: its weights, under the names that the exporter gave them.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and docs/ExternalData.md. The bytes of a tensor are in the model
itself (``raw_data``, or packed floats) or in another file of its folder. Operators are not executed. The messages are
read field by field through a small window, so a model of any size is opened in little memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from ...errors import FormatError
from ...storage.read.base import File, Source
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from ..base import limits
from ..base.header import FilePrint, Header, digest_outside, naming
from ..base.messages import Messages
from ._onnx_messages import OnnxModel, onnx_model
from ._onnx_values import OnnxFiles

__all__ = ["FORMAT"]

_HEAD = re.compile(
    rb"\x08[\x01-\x3f](?:\x12[\x01-\x7f][\x20-\x7e]|\x3a[\x80-\xff]{0,4}[\0-\x7f][\x0a\x12]|\x42[\x01-\x7f][\x0a\x10])"
)
"""Matches the first fields of a ``ModelProto``: version, then name of the producer, graph or operator sets."""
_MADE_NAME = re.compile(r"(?:onnx::\w+_\d+|val_\d+|\d+)")
"""Matches names that torch's exporters make for weights that they have transposed or folded."""


class _Onnx:
    name = "onnx"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins like a ``ModelProto``."""
        return isinstance(source, File) and bool(_HEAD.match(head))

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the model; raises FormatError or UnsafeError if the model breaks a rule of the format.

        Other files with values must be in the folder of the model or its subfolders.
        """
        assert isinstance(source, File)
        with naming(source), ExitStack() as stack:
            found = onnx_model(Messages(source, "ONNX model"))
            own = source.name if any(one.is_external for one in found.tensors) and not name else name
            files = OnnxFiles(source, own, stack)
            tree: dict[str, TensorInfo] = {}
            for one in found.tensors:
                if one.name in tree:
                    raise FormatError(f"the file has two tensors called {escape(one.name)}.", rule="duplicate key")
                tree[one.name] = files.info(one)
            payload = sorted(
                (info.storage.offset, info.storage.offset + info.storage.nbytes)
                for info in tree.values()
                if info.storage is not None and info.storage.file == own
            )
            prints = [FilePrint.of(source, digest_outside(source, payload), own)]
            stack.pop_all()
        nothing = hashlib.sha256(b"").hexdigest()  # the other files have no headers
        prints += [FilePrint.of(file, nothing, key) for key, file in files.others.items()]
        return Header(
            format=self.name,
            tree=tree,
            files=tuple(prints),
            handles=files.handles(),
            metadata=found.metadata,
            notes=tuple(_notes(found, tree)),
        )


def _notes(found: OnnxModel, tree: Mapping[str, TensorInfo]) -> Iterator[str]:
    yield "read the weights of an ONNX model (its initialisers), not its operators"
    if found.constants:
        yield (
            f"{count(found.constants, 'tensor')} of 1 kB or more are constants of nodes, or are in subgraphs or "
            "functions: they were not read"
        )
    if found.sparse:
        yield f"not read: {count(found.sparse, 'sparse tensor')}"
    if found.has_training:
        yield "the graphs for training in this ONNX model were not read"
    if found.long:
        yield f"left out: {count(found.long, 'entry', 'entries')} of metadata longer than {limits.ONNX_TEXT >> 20} MB"
    made = [key for key, info in tree.items() if len(info.shape) > 1 and _MADE_NAME.fullmatch(key)]
    if made:
        have = "1 weight has a name" if len(made) == 1 else f"{len(made)} weights have names"
        yield (
            f"{have} that the exporter made, such as {escape(made[0])}: in the file, weights of linear layers are "
            "transposed, and the gates of LSTM and GRU are in another order; use the checkpoint that was exported, if "
            "you have it"
        )


FORMAT = _Onnx()
