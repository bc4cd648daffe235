"""The device of a run: threads, precision, determinism, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...errors import ConfigError
from ...util.text import human_bytes
from ..config.settings import Settings

__all__ = ["autocast", "choose_device", "explain_out_of_memory", "peak_bytes", "torch_settings"]


def choose_device(name: str | None, local: int | None = None) -> torch.device:
    """Return the device: by default a GPU, if there is one; raises ConfigError if the named one is missing.

    ``local_rank`` is the number of this process on this machine, and of its GPU.
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
    """Set threads and determinism in the block, and restore them.

    The number of threads is always set: two threads on two busy cores took 15 times as long as one
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
    """Return the context in which the model runs."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory: of the GPU, or of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def explain_out_of_memory(settings: Settings) -> Iterator[None]:
    """Raise ConfigError if the GPU is out of memory. Half the clips, accumulated twice as often, are the same step."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, times = settings.batch_size, settings.accumulate
        smaller = f"--set batch_size={-(-size // 2)} --set accumulate={2 * times}" if size > 1 else ""
        less = "" if settings.gradient_checkpointing else "--set gradient_checkpointing=true"
        hint = " or ".join(filter(None, (smaller, less)))
        raise ConfigError(
            f"the GPU{_gpu_size()} has no memory for train.batch_size {size}.",
            hint=f"Try {hint}." if hint else "Train on shorter clips: train.data.max_s.",
        ) from error


def _gpu_size() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", of {human_bytes(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)},"
