"""ONNX: its messages, tensors of several types, and constants in subgraphs."""

from ckptsurgeon.formats.base.protobuf import field

from ..helpers.onnx_files import attribute, graph, model, node, packed, tensor
from .target import Files, Target, written


def make() -> Files:
    large = tensor("value", (300,), values=bytes(1200))
    tensors = [
        tensor("w", (2, 3), values=bytes(24)),
        tensor("shape", (3,), 7, packed([1, -1, 1 << 40]), 7),
        tensor("half", (2,), 10, packed([0x3C00, 0xC000]), 5),
    ]
    nodes = [node("If", attribute("then_branch", 6, graph([large], [node("Constant", attribute("value", 5, large))])))]
    return {"one.onnx": model(graph(tensors, nodes)), "two.onnx": model(graph(tensors), field(14, field(1, b"k")))}


TARGET = Target(written("x.onnx"), make)
