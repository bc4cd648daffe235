"""Seeds all global random generators, and saves and restores their states."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch

__all__ = [
    "preserve_cpu_random_state",
    "preserve_random_state",
    "random_state",
    "seed_all",
    "seed_cpu_from",
    "seed_from",
    "set_random_state",
]


def seed_all(seed: int) -> None:
    """Seed the global random generators of torch (all devices), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def seed_from(*of: object) -> None:
    """Seed the generators of torch (all devices), Python and numpy with a hash of the values ``of``."""
    seed_all(_number(of))


def _number(of: Sequence[object]) -> int:
    text = " ".join(map(str, of))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def random_state() -> dict[str, Any]:
    """Return the states of the generators of this process, in types that ``torch.load(weights_only=True)`` reads.

    If there are several GPUs, only the current GPU of this process is included, because a resumed run may see another
    number of GPUs.
    """
    name, keys, place, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(numpy.asarray(keys).astype("int64")), place, has_gauss, gauss),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to the states that ``random_state`` returned; a GPU without a state is skipped."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, *rest = state["numpy"]
    numpy.random.set_state((name, words.numpy().astype("uint32"), *rest))


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the state of every random generator after the block: an evaluation must not change the training."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def seed_cpu_from(*of: object) -> None:
    """Seed the CPU generators of torch, Python and numpy, which user code may use, with a hash of the values ``of``."""
    number = _number(of)
    torch.default_generator.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number % 2**32)


@contextmanager
def preserve_cpu_random_state() -> Iterator[None]:
    """After the block, restore the CPU generators of torch, Python and numpy.

    The GPU's generator is not saved, because reading its state would wait for the GPU.
    """
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])
