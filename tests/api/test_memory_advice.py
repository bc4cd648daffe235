"""What an error about memory advises is enough for the whole command, and not one byte too much where it is exact."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ..helpers.adapters import factors, peft_folder

Shapes = Mapping[str, tuple[int, ...]]
RISING: Shapes = {"a": (40, 40), "b": (600, 600), "c": (700, 400), "d": (200_000,), "e": (14, 70_000), "f": (3, 70_000)}
"""The tensor that needs most is neither the first nor the last."""


def save(name: str, shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(seed)
    save_file({key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}, f"{name}.safetensors")
    return f"{name}.safetensors"


def advised(run: Callable[[str], Any]) -> int:
    """Return the bytes that a command which gets one byte advises, after a run with them and no other error."""
    with pytest.raises(cs.CheckpointError, match="memory") as error:
        run("1B")
    found = re.search(r"--memory (\d+)B", error.value.hint)
    assert found, error.value.hint
    run(f"{found[1]}B")
    return int(found[1])


def written(plan: cs.Plan) -> None:
    cs.apply(plan, "out/", force=True)


MERGES: dict[str, dict[str, Any]] = {
    "linear": {"weights": [1, 1]},
    "nuslerp": {"weights": [1, 1], "nuslerp_flatten": False},
    "nuslerp of columns": {"weights": [1, 1], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    **{one: {"base": "base.safetensors"} for one in ("ties", "tsv_m", "iso_c", "iso_cts", "wudi", "knots_ties", "pcb")},
    "model_stock": {"base": "base.safetensors", "filter_wise": True},
    "arcee_fusion": {"base": "base.safetensors"},
}


@pytest.mark.costly
@pytest.mark.parametrize("method", MERGES)
def test_a_merge_runs_with_what_its_largest_tensor_needs(method: str) -> None:
    models = [save(name, RISING, seed) for seed, name in enumerate(("x", "y", "base"))][:2]
    if method == "arcee_fusion":
        models = models[:1]

    def run(memory: str) -> None:
        written(cs.merge(models, method=method.split()[0], **MERGES[method], memory=memory))

    need = advised(run)
    with pytest.raises(cs.PlanError, match="memory"):
        run(f"{need - 1}B")


GROUPS = {"hidden": {"a": 0, "b": 1}}


@pytest.mark.costly
@pytest.mark.parametrize("method", ["linear", "tsv_m"])
@pytest.mark.parametrize("channels", [8, 1200])
def test_an_alignment_and_its_merge_run_with_what_is_advised(method: str, channels: int) -> None:
    shapes = {"a": (channels, 300), "b": (700, channels)}
    models = [save(name, shapes, seed) for seed, name in enumerate(("x", "y", "base"))][:2]
    more: dict[str, Any] = {"weights": [1, 1]} if method == "linear" else {"base": "base.safetensors"}
    need = advised(
        lambda memory: written(cs.merge(models, method=method, align=True, align_groups=GROUPS, memory=memory, **more))
    )
    if (method, channels) == ("linear", 8):
        assert need == 16 << 20


@pytest.mark.long
def test_adapters_are_made_and_merged_with_what_is_advised() -> None:
    shapes = {f"layers.{number}.q.weight": (size, 400) for number, size in enumerate((64, 1600, 800))}
    save("base", shapes, 0)
    save("tuned", shapes, 1)
    for number, name in enumerate(("one", "two")):
        pairs = {}
        for key, (rows, columns) in shapes.items():
            a, b = factors(rows, columns, 300, seed=number)
            pairs |= {key.replace("weight", "lora_A.weight"): a, key.replace("weight", "lora_B.weight"): b}
        peft_folder(name, pairs, r=300)
    advised(lambda memory: written(cs.lora_merge("base.safetensors", "one", memory=memory)))
    advised(lambda memory: written(cs.lora_extract("tuned.safetensors", "base.safetensors", rank=40, memory=memory)))
    advised(lambda memory: written(cs.lora_resize("one", rank=20, memory=memory)))
    advised(
        lambda memory: written(cs.lora_concat(["one", "two"], method="knots", merge="ties", rank=30, memory=memory))
    )


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_loha_or_lokr_is_converted_with_what_is_advised(kind: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, size in (("first", 60), ("second", 1000), ("third", 300)):
        sizes = {
            "loha": {
                "hada_w1_a": (size, 30),
                "hada_w1_b": (30, size),
                "hada_w2_a": (size, 30),
                "hada_w2_b": (30, size),
            },
            "lokr": {"lokr_w1": (20, 20), "lokr_w2": (size // 20, size // 20)},
        }[kind]
        torch.manual_seed(0)
        tensors |= {f"lora_unet_{name}.{key}": torch.randn(shape) for key, shape in sizes.items()}
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, "a.safetensors")
    for more in ({"rank": 4}, {"energy": 0.9}, {"energy": 0.9, "rank": 8}):
        advised(lambda memory, more=more: cs.apply(  # type: ignore[misc]
            cs.lora_convert("a.safetensors", to="kohya", memory=memory, **more), "o.safetensors", force=True
        ))  # fmt: skip


@pytest.mark.long
def test_statistics_are_collected_with_what_is_advised(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(n_embd=96, n_head=2, n_layer=2, vocab_size=5000, n_positions=32)
        transformers.GPT2LMHeadModel(config).save_pretrained(name)
        save_file({"input_ids": torch.randint(0, 49, (8, 20))}, f"{name}.inputs.safetensors")
    for more in ({"fisher": True}, {"gram": True, "merged_with": {"b": "b.inputs.safetensors"}}):
        advised(lambda memory, more=more: cs.apply(  # type: ignore[misc]
            cs.stats("a", inputs="a.inputs.safetensors", memory=memory, **more), "s.safetensors", force=True
        ))  # fmt: skip
    merge = {"method": "regmean_plusplus", "statistics": "s.safetensors"}
    advised(lambda memory: written(cs.merge(["a", "b"], memory=memory, **merge)))  # type: ignore[arg-type]
