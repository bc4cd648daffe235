"""Makes the files that are measured, each in a process of its own."""

from __future__ import annotations

from .harness import python, run

__all__ = ["make_many", "make_model", "make_parts", "make_variants"]

MODEL = """
import torch
torch.manual_seed(0)
size, name = {size}, {name!r}
rows = 2560  # 1024 floats a row: 10.5 MB a tensor, as the layers of a model of a few hundred million have
tensors, left, i = {{}}, size, 0
while left > 0:
    n = min(rows, max(1, left // 4096))
    tensors[f"encoder.layers.{{i}}.weight"] = torch.randn(n, 1024)
    tensors[f"encoder.layers.{{i}}.bias"] = torch.randn(1024)
    left -= n * 4096 + 4096
    i += 1
tensors["decoder.weight"] = torch.randn(100, 1024)
tensors["decoder.bias"] = torch.randn(100)
torch.save(tensors, name + ".pth")
from safetensors.torch import save_file
save_file(tensors, name + ".safetensors")
rows = [f"    {{k}}: {{{{shape: {{list(t.shape)}}, init: zeros}}}}" for k, t in tensors.items() if not k.startswith("decoder")]
open(name + ".yaml", "w").write("model:\\n  tensors:\\n" + "\\n".join(rows) + "\\n")
# the same and a head of another size, which torch has to draw
rows += ["    head.weight: {{shape: [2048, 1024], init: {{normal: {{std: 0.02}}}}}}"]
open(name + ".draw.yaml", "w").write("model:\\n  tensors:\\n" + "\\n".join(rows) + "\\n")
"""

MANY = """
import torch
torch.save({f"model.layers.{i // 40}.sub.{i % 40}.weight": torch.zeros(16) for i in range(92_000)}, "many.pth")
"""


def make_model(folder: str, name: str, size: int) -> None:
    """A state dict of about ``size`` bytes as ``.pth`` and ``.safetensors``, and two destinations for it."""
    run(python(MODEL.format(size=size, name=name)), folder)


PARTS = """
import torch
for i in range(5):
    torch.manual_seed(i)
    torch.save({f"layers.{j}.weight": torch.randn(4096, 1024) for j in range(31)}, f"part{i}.pth")
"""


def make_parts(folder: str) -> None:
    """Five checkpoints of one model, 520 MB each."""
    run(python(PARTS), folder)


def make_many(folder: str) -> None:
    """A ``.pth`` of 92,000 tensors."""
    run(python(MANY), folder)


VARIANTS = """
import torch
from safetensors.torch import save_file
number = {size} // (4 * 2048 * 2048)
torch.manual_seed(0)
base = {{f"model.layers.{{i}}.weight": torch.randn(2048, 2048) for i in range(number)}}
save_file(base, "base.safetensors")
for name in "ab":
    save_file({{key: value + 0.1 * torch.randn_like(value) for key, value in base.items()}}, name + ".safetensors")
"""


def make_variants(folder: str, size: int) -> None:
    """A base and two models trained from it, ``size`` bytes each."""
    run(python(VARIANTS.format(size=size)), folder)
