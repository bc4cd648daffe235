"""Reads the messages of an ONNX model: its tensors, its metadata, and the numbers of other parts, for notes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from ...errors import FormatError, UnsafeError
from ..base import limits
from ..base.messages import Field, Messages
from ..base.protobuf import signed

__all__ = ["DOUBLES", "FLOATS", "NUMBERS", "RAW", "OnnxModel", "OnnxTensor", "onnx_model"]

FLOATS, DOUBLES, RAW, EXTERNAL = 4, 10, 9, 13
"""The fields of a ``TensorProto`` that contain its values, or name the file with the values."""
NUMBERS = {5: "int32_data", 7: "int64_data", 11: "uint64_data"}
"""The fields that contain values as varints."""
_LARGE = 1 << 10
"""From this size in bytes on, constants of nodes are counted in a note: smaller ones are shapes, axes and the like."""


@dataclass
class OnnxTensor:
    """A ``TensorProto`` as it is read; ``places`` is {number of a field: ranges of its bytes in the file}."""

    name: str = ""
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


@dataclass
class OnnxModel:
    """The content of a model: tensors, metadata, and counts for the notes on parts that were not read."""

    tensors: list[OnnxTensor] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    sparse: int = 0
    long: int = 0
    constants: int = 0
    has_graph: bool = False
    has_training: bool = False


def onnx_model(messages: Messages) -> OnnxModel:
    """Return the content of a ``ModelProto``; raises FormatError if it has no graph, UnsafeError if it is too large."""
    found = OnnxModel()
    size = messages.file.size
    texts = {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string"}
    for one in messages.fields(0, size):
        if one.number == 1:
            found.metadata["ir_version"] = str(one.value)
        elif one.end - one.begin > limits.ONNX_TEXT and one.number in (*texts, 8, 14):
            found.long += 1
        elif one.number in texts and one.end > one.begin:
            found.metadata[texts[one.number]] = messages.text(one, limits.ONNX_TEXT)
        elif one.number == 7:
            found.has_graph = True
            _graph(messages, one, found)
        elif one.number == 8:
            domain, version = _pair(messages, one)
            found.metadata[f"opset {domain or 'ai.onnx'}"] = version
        elif one.number == 14:
            key, value = _pair(messages, one)
            found.metadata[key] = value
        elif one.number == 20:
            found.has_training = True
        elif one.number == 25:
            nodes = [part for part in messages.fields(one.begin, one.end) if part.number == 7]
            found.constants += sum(_constants(messages, node) for node in nodes if node.end - node.begin >= _LARGE)
        if len(found.metadata) > limits.EXTRAS:
            raise UnsafeError(f"the file has more than {limits.EXTRAS:,} entries of metadata.", rule="onnx metadata")
    if not found.has_graph:
        raise FormatError("the file has no graph, so it is not an ONNX model, or is truncated.", rule="onnx graph")
    return found


def _pair(messages: Messages, of: Field) -> tuple[str, str]:
    """Return the fields 1 and 2 of the message ``of`` (such as key and value) as texts; the integer 5 becomes "5"."""
    found = {1: "", 2: ""}
    for one in messages.fields(of.begin, of.end):
        if one.number in found:
            found[one.number] = str(signed(one.value)) if one.is_number else messages.text(one, limits.ONNX_TEXT)
    return found[1], found[2]


def _graph(messages: Messages, of: Field, found: OnnxModel) -> None:
    for one in messages.fields(of.begin, of.end):
        if one.number == 1 and one.end - one.begin >= _LARGE:
            found.constants += _constants(messages, one)
        elif one.number == 5:
            found.tensors.append(_tensor(messages, one))
            if len(found.tensors) > limits.TENSORS:
                raise UnsafeError(f"the file has more than {limits.TENSORS:,} tensors.", rule="tensors")
        elif one.number == 15:
            found.sparse += 1


def _constants(messages: Messages, node: Field, depth: int = 0) -> int:
    """Return the number of large tensors in the attributes of a node, directly or in subgraphs.

    Tensors in a subgraph are its initialisers, or are in the attributes of its nodes. ``depth`` is the number of
    subgraphs around ``node``.
    """
    total = 0
    attributes = [one for one in messages.fields(node.begin, node.end) if one.number == 5]
    for attribute in attributes:
        for one in list(messages.fields(attribute.begin, attribute.end)):
            if one.end - one.begin < _LARGE:
                continue
            if one.number in (5, 10):  # a tensor, or one of several
                total += 1
            elif one.number in (6, 11) and depth < limits.ONNX_DEPTH:  # a graph, or one of several
                parts = [part for part in messages.fields(one.begin, one.end) if part.end - part.begin >= _LARGE]
                total += sum(part.number == 5 for part in parts)
                total += sum(_constants(messages, part, depth + 1) for part in parts if part.number == 1)
    return total


def _tensor(messages: Messages, of: Field) -> OnnxTensor:
    tensor = OnnxTensor()
    for one in messages.fields(of.begin, of.end):
        if one.number == 1:
            tensor.shape += messages.numbers(one, limits.DIMENSIONS)
        elif one.number == 2:
            tensor.dtype = one.value
        elif one.number == 8:
            tensor.name = messages.text(one)
        elif one.number in NUMBERS:
            tensor.numbers.extend(messages.numbers(one, limits.MESSAGE_NUMBERS))
            tensor.places[one.number] = []
        elif one.number in (FLOATS, DOUBLES, RAW, 6):
            if one.end > one.begin:
                tensor.places.setdefault(one.number, []).append((one.begin, one.end))
        elif one.number == EXTERNAL:
            key, value = _pair(messages, one)
            tensor.external[key] = value
        elif one.number == 14:
            tensor.is_external = one.value == 1
    if not tensor.name:
        raise FormatError("one of the initialisers has no name.", rule="onnx name")
    return tensor
