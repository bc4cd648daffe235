"""Sets the random state and the defaults of torch and Python while values are drawn, and restores them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from .user_code import PROCESS_STATE

__all__ = ["derived_seed", "drawing", "python_random"]


def derived_seed(seed: int, key: str, place: int) -> int:
    """Return the seed of a random operation, computed with SHA-256 from ``seed``, ``key`` and ``place``.

    ``key`` is the first state-dict key whose tensor depends on the operation. ``place`` is the index of the operation
    among the operations with the same ``key``.
    """
    digest = hashlib.sha256(f"{seed}\0{key}\0{place}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def drawing() -> Iterator[None]:
    """Make torch run on the CPU, with one thread and without gradients, during the block.

    Afterwards the number of threads and the random state are restored. Only one thread of the process can be in such a
    block, because all threads share the random generator; other threads wait.
    """
    with PROCESS_STATE:
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(1)
        try:
            with torch.no_grad(), torch.device("cpu"):
                yield
        finally:
            torch.set_rng_state(state)
            torch.set_num_threads(threads)


@contextmanager
def python_random(seed: int) -> Iterator[list[bool]]:
    """Seed the random generators of Python and numpy for the block, and restore them afterwards.

    Yields an empty list; after the block the list has one item, which is true if the generators were used.
    """
    with PROCESS_STATE:
        python, array = random.getstate(), numpy.random.get_state()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        seeded = random.getstate(), _numpy_state()
        used: list[bool] = []
        try:
            yield used
        finally:
            used.append((random.getstate(), _numpy_state()) != seeded)
            random.setstate(python)
            numpy.random.set_state(array)


def _numpy_state() -> tuple[Any, ...]:
    """Return the state of numpy's random generator as values that ``==`` can compare."""
    name, keys, *others = numpy.random.get_state(legacy=True)
    return name, numpy.asarray(keys).tobytes(), *others
