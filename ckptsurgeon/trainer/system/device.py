"""Where a run computes, and how exactly: device, threads, precision, determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...errors import ConfigError
from ..config.settings import Settings

__all__ = ["autocast", "choose_device", "peak_bytes", "torch_settings"]


def choose_device(name: str | None, local: int | None = None) -> torch.device:
    """Return the device to use, a GPU where there is one; raises ConfigError where the one asked for is not there.

    ``local`` is the number of this process among several on this machine, each of which takes the GPU of its number.
    """
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"there is no device {name!r}.", hint="Use cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(f"--device cuda: torch {torch.__version__} {built}.", hint="Use --device cpu.")
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu" or local is None:
        return torch.device(kind)
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local} has no GPU: there are {torch.cuda.device_count()}.",
            hint="Start no more processes than there are GPUs (--nproc-per-node).",
        )
    return torch.device(kind, local)


@contextmanager
def torch_settings(settings: Settings) -> Iterator[None]:
    """Set threads and determinism for a run, and put back what was.

    Threads are never left to chance: two of them on two busy cores took 15 times as long as one
    (https://github.com/facebookresearch/fairseq/issues/3342).
    """
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)
        torch.backends.cudnn.benchmark = benchmark


def autocast(settings: Settings, device: torch.device) -> Any:
    """Return the context in which a model is run."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use: on the GPU, or by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
