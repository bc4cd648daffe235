"""Sends the request of rank 0 to the other ranks, and checks that all ranks train the same model and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from ...errors import ConfigError
from ...util.text import escape
from ..job.job import Job
from ..parallel.ranks import Ranks
from .records import data_digests
from .result import plain_json

__all__ = ["TrainRequest", "rank_mismatch", "request_sender"]


@dataclass(frozen=True)
class TrainRequest:
    """A request of rank 0 to the other ranks to train: the arguments with which ``train`` was called on rank 0."""

    config: str
    sets: tuple[str, ...]
    init: str | None
    overfit: bool
    run: str
    resume: bool
    strategy: str


@contextmanager
def request_sender(ranks: Ranks) -> Iterator[Callable[[TrainRequest], None]]:
    """Yield a function that sends a request to the other ranks; if the block never calls it, the other ranks end."""
    sent = False

    def send(request: TrainRequest) -> None:
        nonlocal sent
        if not sent:
            sent = True
            ranks.broadcast(request)

    try:
        yield send
    finally:
        if not sent:
            with suppress(RuntimeError):  # the other ranks may be gone
                ranks.broadcast(None)


def rank_mismatch(job: Job) -> ConfigError | None:
    """Return an error if the ranks would train different models, settings or data; every rank must call this.

    Returns None if all ranks would train the same.
    """
    own = {
        "settings": plain_json(asdict(job.settings)), "model": job.document.model, "data": data_digests(job),
        "init": [file["sha256"] for file in job.init.files] if job.init is not None else [],
    }  # fmt: skip
    of_all = job.ranks.all_gather(own)
    for rank, other in enumerate(of_all):
        different = [name for name, value in of_all[0].items() if other[name] != value]
        if different:
            return ConfigError(
                f"rank {rank} has different {' and '.join(different)} than rank 0 for {escape(job.document.name)}.",
                hint="All processes must read the same configuration, manifests, token list and init.",
            )
    return None
