"""An open checkpoint: a read-only mapping from key to header, whatever the format, nothing executed."""

from .checkpoint import Checkpoint
from .extras import Extra
from .given import CheckpointLike, check_given, holds_tensors, is_given, path_of, place_of
from .opening import checkpoint_of, open_checkpoint
from .quantisation import SETTINGS, settings_among, settings_in

__all__ = [
    "SETTINGS",
    "Checkpoint",
    "CheckpointLike",
    "Extra",
    "check_given",
    "checkpoint_of",
    "holds_tensors",
    "is_given",
    "open_checkpoint",
    "path_of",
    "place_of",
    "settings_among",
    "settings_in",
]
