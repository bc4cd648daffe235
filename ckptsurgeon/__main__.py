"""``python -m ckptsurgeon`` is ``ckpt``."""

import sys

from .cli import main

sys.exit(main())
