"""What rank 0 asks the other ranks to train, and whether all of them would train the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from ...errors import ConfigError
from ...util.text import escape
from ..job.job import Job
from ..parallel.ranks import Ranks
from .lineage import data_digests
from .result import plain_json

__all__ = ["TrainRequest", "rank_mismatch", "request_sender"]


@dataclass(frozen=True)
class TrainRequest:
    """What the first process tells the others to train: what it was given itself."""

    config: str
    sets: tuple[str, ...]
    init: str | None
    overfit: bool
    run: str
    resume: bool
    strategy: str


@contextmanager
def request_sender(ranks: Ranks) -> Iterator[Callable[[TrainRequest], None]]:
    """Give what tells the others to go; where the block ends without, there is nothing for them to do."""
    told = ranks.size == 1

    def go(going: TrainRequest) -> None:
        nonlocal told
        if not told:
            told = True
            ranks.told(going)

    try:
        yield go
    finally:
        if not told:
            with suppress(RuntimeError):
                ranks.told(None)


def rank_mismatch(job: Job) -> ConfigError | None:
    """Return the error where the processes do not train the same model on the same data; all of them have to ask."""
    if job.ranks.size == 1:
        return None
    own = {
        "settings": plain_json(asdict(job.settings)), "model": job.document.model, "data": data_digests(job),
        "init": [file["sha256"] for file in job.init.files] if job.init is not None else [],
    }  # fmt: skip
    of_all = job.ranks.agreed(own)
    for rank, other in enumerate(of_all):
        different = [name for name, value in of_all[0].items() if other[name] != value]
        if different:
            return ConfigError(
                f"rank {rank} has other {' and '.join(different)} than rank 0 for {escape(job.document.name)}.",
                hint="Every process reads the same configuration, manifests, token list and init.",
            )
    return None
