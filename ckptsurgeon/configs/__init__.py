"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""

from ._load import load_target, module_destination
from ._yaml import dump_yaml, read_yaml
from .declared import declare

__all__ = ["declare", "dump_yaml", "load_target", "module_destination", "read_yaml"]
