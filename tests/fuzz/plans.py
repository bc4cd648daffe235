"""Plans, as JSON."""

import json
import os
import tempfile

import torch

from tests.fuzz.target import fuzz, written

# isort: split
# what is imported before atheris is not instrumented
import ckptsurgeon as cs
from ckptsurgeon.api.recipes import load_plan

if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    seeds = [cs.convert("a.pth"), cs.rename("a.pth", map=["a=c"]), cs.average(["a.pth", "a.pth"])]
    fuzz(written("p.json", load_plan), [json.dumps(plan.to_json()).encode() for plan in seeds])
