"""The tests.

Packages in ``wheels/<version of Python>/`` beside them (``make wheels``) are found without an install, before those of the
machine, and so is this checkout: by the processes that tests start, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHEELS = ROOT / "wheels" / f"{sys.version_info.major}.{sys.version_info.minor}"

if WHEELS.is_dir():
    found = [str(ROOT), str(WHEELS)]
    sys.path[:] = found + [place for place in sys.path if place not in found]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*found, os.environ.get("PYTHONPATH", "")]))
