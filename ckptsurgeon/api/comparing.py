"""``diff``: two checkpoints held against each other."""

from __future__ import annotations

import math

from ..checkpoint import open_checkpoint
from ..comparison import Difference, Tolerance, compare
from ..errors import ConfigError
from .types import Path, Progress

__all__ = ["diff"]


def diff(
    first: Path,
    second: Path,
    *,
    values: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    renames: bool = False,
    root: str | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Compare two checkpoints tensor by tensor, whatever their formats, shards, wrappers and dtypes.

    From headers alone, unless ``values`` asks for their values: then tensors are changed that differ anywhere by more
    than ``atol`` + ``rtol`` times the second's magnitude, and how far they are apart is measured. ``renames`` finds
    tensors that are held under other names by their content, and the rules that rename them. ``root`` is the state
    dict of both.

    Raises what ``open_checkpoint`` raises, and FormatError where a record that is read fails the checksum it has.
    """
    for name, value in (("--rtol", rtol), ("--atol", atol)):
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{name} {value} is no tolerance.", hint="Use a number of zero or more.")
    if (rtol or atol) and not values:
        raise ConfigError("--rtol and --atol need --values: headers hold none.")
    with open_checkpoint(first, root) as a, open_checkpoint(second, root) as b:
        return compare(a, b, values=values, tolerance=Tolerance(rtol, atol), renames=renames, progress=progress)
