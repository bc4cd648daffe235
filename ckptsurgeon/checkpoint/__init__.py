"""An open checkpoint: a read-only mapping from key to header, whatever the format, nothing executed."""

from .checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from .extras import Extra

__all__ = ["Checkpoint", "Extra", "checkpoint_of", "open_checkpoint"]
