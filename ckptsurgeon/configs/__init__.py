"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""

from ._load import adopt, is_configuration, load_target, module_destination
from .declared import declare

__all__ = ["adopt", "declare", "is_configuration", "load_target", "module_destination"]
