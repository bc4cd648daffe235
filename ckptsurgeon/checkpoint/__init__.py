"""An open checkpoint: a read-only mapping from key to header, whatever the format, nothing executed."""

from .checkpoint import Checkpoint, open_checkpoint
from .extras import Extra

__all__ = ["Checkpoint", "Extra", "open_checkpoint"]
