"""The JSON of the verbs that edit and compare, held against golden files: fields are added, never renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., Any]
Golden = Callable[[str, str], None]


@pytest.fixture
def pair() -> None:
    state = {f"layers.{i}.{name}": torch.full((2, 3), float(i)) for i in range(3) for name in ("q", "k")}
    state |= {"norm": torch.ones(4), "steps": torch.tensor(7)}
    save_file(state, "a.safetensors", metadata={"who": "me"})
    other = {key.replace("layers", "blocks"): value for key, value in state.items()}
    other["norm"] = torch.tensor([1.0, 1.0, 1.0, 1.5])
    save_file(other, "b.safetensors")
    factors = {"up.lora_A": torch.ones(2, 3), "up.lora_B": torch.ones(2, 2)}
    Path("adapter").mkdir()
    save_file(
        {f"base_model.model.{key}.weight": one for key, one in factors.items()}, "adapter/adapter_model.safetensors"
    )
    Path("adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    save_file({"up.weight": torch.zeros(2, 3), "norm": torch.ones(2)}, "plain.safetensors")
    save_file({"up.weight": torch.tensor([[3.0, 0, 0], [0, 4, 0]]), "norm": torch.zeros(2)}, "tuned.safetensors")
    save_file({**state, "norm": torch.ones(5)}, "wide.safetensors")
    Path("a.txt").write_text("\n".join("abcd"))
    Path("wide.txt").write_text("\n".join("dcbae"))


def stable(data: dict[str, Any]) -> str:
    """JSON without what differs from one run to the next: times, checksums of files, sizes of headers."""
    for holder in (*data.get("sources", []), data.get("target", {})):
        for file in holder.get("files", []):
            file.update({"size": 0, "sha256": "", "mtime_ns": 0})
    if "costs" in data:
        data["costs"]["memory_nbytes"] = 0  # it goes by the machine
    for field in ("elapsed_s", "plan_sha256", "nbytes_written", "nbytes_read"):
        if field in data:
            data[field] = 0
    return json.dumps(data, indent=1) + "\n"


COMMANDS = {
    "diff": ["diff", "a.safetensors", "b.safetensors", "--values", "--renames"],
    "match": ["match", "a.safetensors", "b.safetensors"],
    "rename": ["rename", "a.safetensors", "--map", "layers=blocks", "-n"],
    "filter": ["filter", "a.safetensors", "--exclude", "norm", "-n"],
    "convert": ["convert", "a.safetensors", "--dtype", "bf16", "--set-metadata", "who=you", "-n"],
    "average": ["average", "a.safetensors", "a.safetensors", "--ema", "0.5", "-n"],
    "lora-merge": ["lora", "merge", "plain.safetensors", "adapter", "--weights", "0.5", "-n"],
    "lora-extract": ["lora", "extract", "tuned.safetensors", "plain.safetensors", "--rank", "1", "-o", "out"],
    "merge": ["merge", "a.safetensors", "a.safetensors", "--base", "wide.safetensors", "--method", "task_arithmetic",
              "--weights", "0.5,1", "--on-mismatch", "norm=overlap", "-n"],
    "merge-vocab": ["merge", "a.safetensors", "wide.safetensors", "--method", "linear", "--weights", "1,1", "--vocab",
                    "union", "--tokens", "a.safetensors=a.txt", "--tokens", "wide.safetensors=wide.txt", "-n"],
    "receipt": ["rename", "a.safetensors", "--map", "layers=blocks", "-o", "o.safetensors"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_json_is_as_it_was(name: str, pair: None, ckpt: Run, golden: Golden) -> None:
    done = ckpt(*COMMANDS[name], "--json")
    assert done.code == (1 if name == "diff" else 0)
    golden(f"json-{name}.json", stable(json.loads(done.out)))


def test_metadata_is_shown_on_request(pair: None, ckpt: Run) -> None:
    assert "  metadata\n    who = me\n" in ckpt("inspect", "a.safetensors", "--metadata").out
    assert "  no metadata\n" in ckpt("inspect", "b.safetensors", "--metadata").out
    assert json.loads(ckpt("inspect", "a.safetensors", "--json").out)["metadata"] == {"who": "me"}


def test_two_values_of_one_entry_of_metadata_are_an_error(pair: None, ckpt: Run) -> None:
    given = ("--set-metadata", "who=me", "--set-metadata", "who=you")
    done = ckpt("convert", "a.safetensors", *given, "-n")
    assert (done.code, done.err.strip()) == (2, "error: --set-metadata gives who two values. Leave one of the two out.")
    assert ckpt("convert", "a.safetensors", *given[:2], *given[:2], "-n").code == 0
