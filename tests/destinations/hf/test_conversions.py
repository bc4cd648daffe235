"""Conversions of a checkpoint's tensors for a destination of transformers, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptsurgeon as cs


def op(name: str, *args: Any, **fields: Any) -> Any:
    from transformers import core_model_loading

    return getattr(core_model_loading, name)(*args, **fields)


CONVERSIONS: dict[str, tuple[list[str], list[str], list[tuple[Any, ...]], dict[str, tuple[int, ...]]]] = {
    "interleaved, then split": (["w13"], ["gate", "up"], [("Interleave", 1), ("Chunk", 1)], {"l.0.w13": (3, 8)}),
    "interleaved": (["w13"], ["fused"], [("Interleave", 0)], {"l.0.w13": (8, 3)}),
    "de-interleaved": (["w13"], ["fused"], [("Interleave", 0, True)], {"l.0.w13": (8, 3)}),
    "transposed": (["w_in"], ["weight"], [("Transpose", 1, 2)], {"l.0.w_in": (2, 3, 4)}),
    "split as the destination has it": (["qkv"], ["q", "k", "v"], [("Split", 0)], {"l.0.qkv": (8, 3)}),
    "split and turned": (["qkv"], ["q", "k", "v"], [("Chunk", 0), ("PermuteForRope",)], {"l.0.qkv": (24, 3)}),
    "turned": (["wq"], ["q"], [("PermuteForRope",)], {"l.0.wq": (8, 3)}),
    "a bias turned": (["wq"], ["q"], [("PermuteForRope",)], {"l.0.wq": (8,)}),
    "joined": (["q_in", "k_in"], ["qk"], [("Concatenate", 0)], {"l.0.q_in": (2, 3), "l.0.k_in": (4, 3)}),
    "stacked, then joined": (
        ["e.*.a", "e.*.b"],
        ["ab"],
        [("MergeModulelist", 0), ("Concatenate", 1)],
        {f"l.0.e.{e}.{name}": (2, 3) for e in range(11) for name in "ab"},
    ),
}


@pytest.mark.costly
@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_conversion_is_what_transformers_makes_of_it(case: str) -> None:
    from transformers.core_model_loading import WeightConverter, dot_natural_key

    from ckptsurgeon.destinations.hf.groups import ConversionGroup
    from ckptsurgeon.destinations.hf.operations import rows_of

    class Config:
        num_attention_heads = 2

    class Model:
        def get_parameter(self, name: str) -> torch.Tensor:
            return torch.empty({"q": 4, "k": 2, "v": 2}[name.rpartition(".")[2]], 3)

    sources, targets, steps, shapes = CONVERSIONS[case]
    converter = WeightConverter(sources, targets, operations=[op(*step) for step in steps])
    torch.manual_seed(0)
    tensors = {key: torch.randn(*shape) for key, shape in sorted(shapes.items(), key=lambda kv: dot_natural_key(kv[0]))}
    group = ConversionGroup(f"l.0.{targets[0]}", converter)
    collected: dict[str, Any] = {}
    for key, value in tensors.items():
        pattern = next(one for one in sources if one.rpartition(".")[2] == key.rpartition(".")[2])
        group.add(pattern, key, cs.TensorInfo("float32", tuple(value.shape)))
        collected.setdefault(pattern, []).append(value)
    for operation in converter.operations:
        collected = operation.convert(
            collected, source_patterns=converter.source_patterns, target_patterns=converter.target_patterns,
            full_layer_name=group.target, model=Model(), config=Config,
        )  # fmt: skip
    torch.save(tensors, "old.pth")
    outputs = {f"l.0.{name}": cs.TensorInfo("float32", (4 if name == "q" else 2, 3)) for name in targets}
    for naming in (group.literal(), group.general()):
        rows, names = rows_of(group, naming, Config, outputs)
        plan = cs.rename("old.pth", operations=rows, map={key: name for key, name in names.items() if key != name})
        cs.apply(plan, "new.pth", force=True)
        made = torch.load("new.pth")
        assert made.keys() == outputs.keys()
        for name, value in collected.items():
            value = value[0] if isinstance(value, list) else value
            assert torch.equal(made[f"l.0.{name}"], value), name
