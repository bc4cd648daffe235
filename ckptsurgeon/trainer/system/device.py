"""The device of a run: threads, precision, determinism, memory; explains errors of torch."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...errors import CheckpointError, ConfigError
from ...util.text import count, escape, human_bytes
from ...util.torchrun import cores_of_process
from ..config.settings import Settings

__all__ = [
    "autocast",
    "choose_device",
    "device_notes",
    "evaluation_error",
    "explain_compile_errors",
    "explain_nondeterminism",
    "explain_out_of_memory",
    "out_of_memory_error",
    "peak_bytes",
    "torch_settings",
    "usual_workers",
    "without_cudnn_attention",
]

MOST_WORKERS = 8
"""The largest default number of data workers of a process."""


def choose_device(name: str | None, local: int | None = None) -> torch.device:
    """Return the device ``name`` (cpu or cuda). If ``name`` is None, return the GPU if there is one, else the CPU.

    ``local`` is the local rank of this process, and so the index of its GPU. Raises ConfigError if there is no such
    device.
    """
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is unknown.", hint="Use cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(f"--device cuda: torch {torch.__version__} {built}.", hint="Use --device cpu.")
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu" or local is None:
        return torch.device(kind)
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local} has no GPU: this machine has {count(torch.cuda.device_count(), 'GPU')}.",
            hint="Start no more processes than there are GPUs: torchrun --nproc-per-node.",
        )
    return torch.device(kind, local)


def usual_workers(device: torch.device) -> int:
    """Return the default number of data workers: 0 on a CPU, else one for each core of this process, at most eight.

    The processes of a ``torchrun`` job on this machine share its cores.
    """
    return 0 if device.type == "cpu" else min(MOST_WORKERS, cores_of_process())


def device_notes(settings: Settings, device: torch.device) -> list[str]:
    """Return notes on settings that have no effect on a device, or that make a GPU wait for data."""
    notes = []
    if settings.precision == "tf32" and device.type == "cpu":
        notes.append("train.precision: tf32 has no effect on a CPU, which computes in float32")
    if settings.data.workers == 0 and device.type != "cpu":
        notes.append("train.data.workers is 0, so the GPU waits while each batch is read and prepared")
    return notes


@contextmanager
def torch_settings(settings: Settings, device: torch.device, *, lengths_vary: bool = True) -> Iterator[None]:
    """Set torch's threads, precision, determinism and attention inside the block, and restore them after it.

    The number of threads is always set, because too many are slow: two threads on two busy cores took 15 times as long
    as one (https://github.com/facebookresearch/fairseq/issues/3342). By default torch rounds the factors of
    convolutions on a GPU to TF32, but not the factors of matrix products; here ``train.precision`` decides on both.

    If ``lengths_vary``, the attention of cuDNN is not used.
    """
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(settings.threads)
    rounds = _set_tf32(settings.precision != "float32") if device.type == "cuda" else None
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        with without_cudnn_attention() if lengths_vary else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        if rounds is not None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounds
        torch.use_deterministic_algorithms(exact)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep torch from using cuDNN's attention inside the block.

    cuDNN builds a plan for each new shape of a batch, which takes longer than a step: 0.4 s forward and 0.5 s backward
    (https://github.com/modelscope/FunASR/issues/3704).
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _set_tf32(wanted: bool) -> tuple[bool, bool]:
    """Set whether matrix products and convolutions on a GPU round to TF32; return both former settings."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
    return before


def autocast(settings: Settings, device: torch.device) -> Any:
    """Return the context in which the model runs: autocast with ``precision: bf16``, else a context without effect."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU or, if the device is a CPU, of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def explain_nondeterminism(settings: Settings) -> Iterator[None]:
    """Turn torch's RuntimeError on an operation that has no deterministic implementation into a ConfigError."""
    try:
        yield
    except RuntimeError as error:
        if not settings.deterministic or "deterministic" not in str(error):
            raise
        raise ConfigError(
            f"train.deterministic is true, but {escape(str(error).partition('. You can')[0], 300)}.",
            hint="Pass --set deterministic=false.",
        ) from error


@contextmanager
def explain_out_of_memory(settings: Settings, *, evaluates: bool = False) -> Iterator[None]:
    """Raise ConfigError, with a hint on smaller batches, if the GPU runs out of memory in the block.

    ``evaluates`` is true if the block only evaluates a model: then settings of training do not help.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise (evaluation_error if evaluates else out_of_memory_error)(settings) from error


def out_of_memory_error(settings: Settings, saved_step: int | None = None) -> ConfigError:
    """Return the error for a GPU that is out of memory; ``saved_step`` is the step that was saved when the run ended.

    If no step was saved, the hint proposes half the batch size (rounded up) with twice the accumulation, which makes
    nearly the same optimizer step. A resumed run must keep its batch size, so if a step was saved, the hint proposes
    only gradient checkpointing.
    """
    less = "" if settings.gradient_checkpointing else "--set gradient_checkpointing=true"
    where, smaller = _too_large(settings)
    if saved_step is not None:
        hint = f"Continue from that step with --resume {less}." if less else "Start another run, with smaller batches."
        return ConfigError(f"{where}. Step {saved_step} was saved.", hint=hint)
    smaller = f"{smaller} --set accumulate={2 * settings.accumulate}" if smaller else ""
    hint = " or ".join(filter(None, (smaller, less)))
    return ConfigError(f"{where}.", hint=f"Try {hint}." if hint else "Train on shorter clips: train.data.max_s.")


def evaluation_error(settings: Settings, done: str = "", command: str = "") -> ConfigError:
    """Return the error for a GPU that is out of memory in an evaluation.

    ``done`` says what is complete and saved. ``command`` is a command that evaluates alone: the hint adds an option.
    """
    where, smaller = _too_large(settings)
    said = f"{done}, but {where}." if done else f"{where}."
    if command:
        return ConfigError(said, hint=f"Evaluate alone: {command} {smaller or '--device cpu'}")
    return ConfigError(said, hint=f"Try {smaller}." if smaller else "Evaluate on the CPU: --device cpu.")


def _too_large(settings: Settings) -> tuple[str, str]:
    """Return which batch size the GPU has no memory for, as a sentence, and the option for half of it.

    The option is '' if the size is 1.
    """
    size: float
    if settings.batch_seconds is None:
        name, size, half = "batch_size", settings.batch_size, f"{-(-settings.batch_size // 2)}"
    else:
        name, size, half = "batch_seconds", settings.batch_seconds, f"{settings.batch_seconds / 2:g}"
    where = f"the GPU{_gpu_size()} does not have enough memory for train.{name} {size:g}"
    return where, f"--set {name}={half}" if size > 1 else ""


def _gpu_size() -> str:
    if not torch.cuda.is_available():
        return ""
    return f" ({human_bytes(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)})"


@contextmanager
def explain_compile_errors(settings: Settings) -> Iterator[None]:
    """Raise ConfigError if something in the block cannot be compiled, or if there is no compiler."""
    try:
        with warnings.catch_warnings():
            # These warnings are from functions of transformers that look up installed packages, and from torch itself.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a .functools.lru_cache")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            # train.precision decides whether float32 is rounded to TF32.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores for float32 matrix multiplication")
            yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if settings.compile == "off" or not _is_compile_error(error):
            raise
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"the task {escape(settings.task)} cannot be compiled with this model: {escape(why.strip(), 300)}.",
            hint="Pass --set compile=off to train without compiling, or set CKPT_DEBUG=1 to see the traceback.",
        ) from error


def _is_compile_error(error: Exception) -> bool:
    """Return whether torch.compile raised an error: by its class or, in a compiled backward pass, by its traceback."""
    if any(one.__module__.startswith(("torch._dynamo", "torch._inductor")) for one in type(error).__mro__):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__", "")).startswith("torch._inductor") for frame, _ in frames)
