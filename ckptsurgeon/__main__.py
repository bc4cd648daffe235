"""``python -m ckptsurgeon`` is ``ckpt``."""

import sys

from .entry import main

sys.exit(main())
