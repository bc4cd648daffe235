"""Operations on tensors, as YAML."""

from ckptsurgeon.api.inputs.operations import operations_of

from .target import Files, Target, written

ROWS = (
    "- {split: 'layers.{n}.qkv', into: ['layers.{n}.q', 'layers.{n}.k'], dim: 0}\n"
    "- {concat: [a.q, a.k], into: a.qk, dim: 0}\n- {transpose: '**.w'}\n- {reshape: b, shape: [2, -1]}\n"
)


def make() -> Files:
    return {"rows.yaml": ROWS.encode(), "map.yaml": b"operations:\n- {permute: a, dims: [1, 0]}\n"}


TARGET = Target(written("x.yaml", operations_of), make)
