"""Files of what fsspec reads: s3://, gs://, memory:// and every other scheme it has a driver for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, SourceError
from ..sources import scheme_of
from ..text import escape
from .download import Downloaded
from .origin import Origin
from .placing import Placing

if TYPE_CHECKING:
    from ..engine import Progress

__all__ = ["names_below", "read_store"]

CHUNK = 1 << 22


def names_below(origin: Origin) -> list[str]:
    """Return the names of all files of a folder, relative to it and sorted; [] for a file. Raises SourceError."""
    with _asking(origin):
        system, path = _open(origin)
        if not system.isdir(path):
            return []
        return sorted(str(name)[len(path.rstrip("/")) + 1 :] for name in system.find(path))


def read_store(
    origin: Origin, path: str, placing: Placing, *, etag: str = "", sha256: str = "", progress: Progress | None = None
) -> Downloaded | None:
    """Read a file into a temp file for ``path``; None where it is still of the version that ``etag`` names.

    Raises SourceError where it cannot be had whole, or is not what ``sha256`` says.
    """
    with _asking(origin):
        system, inside = _open(origin)
        version, size = str(system.ukey(inside)), int(system.size(inside))
    if etag and version == etag:
        return None
    staged, digest, done = placing.file(path, size), hashlib.sha256(), 0
    with _asking(origin), system.open(inside, "rb") as file:
        while chunk := file.read(CHUNK):
            staged.write(done, chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, max(done, size))
    if done != size:
        raise SourceError(f"{escape(origin.shown)} broke off: {done} of {size} bytes came.", hint="Try again.")
    if sha256 and digest.hexdigest() != sha256:
        raise SourceError(
            f"{escape(origin.shown)} is not what was asked for: its SHA-256 is {digest.hexdigest()}, not {sha256}."
        )
    staged.flush(size)
    return Downloaded(staged, digest.hexdigest(), version)


def _open(origin: Origin) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(origin.path.rstrip("/"))
    return system, str(path)


@contextmanager
def _asking(origin: Origin) -> Iterator[None]:
    """Let whatever a driver raises be an error of ours; each has its own."""
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"{escape(origin.shown)} needs a package that is not installed: {escape(str(error))}"
        ) from None
    except Exception as error:
        why = escape(str(error).strip() or type(error).__name__, 400)
        if "Protocol not known" in why:
            raise ConfigError(
                f"{escape(origin.shown)}: nothing reads {scheme_of(origin.path)}:// addresses.",
                hint="Use hf://, http(s):// or what fsspec reads.",
            ) from None
        raise SourceError(f"{escape(origin.shown)} cannot be had: {why}") from None
