"""Brings files that lie elsewhere (a folder, a hub repository, a web address) to a place on this machine."""

from .collect import collect_file
from .collecting import Collecting, collect
from .config import FetchConfig, fetch_config_of, strategy_of
from .fetch import fetch
from .fetched import Fetched, FetchedFile
from .origin import Origin, origin_of, split_path
from .record import check_unchanged_since

__all__ = [
    "Collecting",
    "FetchConfig",
    "Fetched",
    "FetchedFile",
    "Origin",
    "check_unchanged_since",
    "collect",
    "collect_file",
    "fetch",
    "fetch_config_of",
    "origin_of",
    "split_path",
    "strategy_of",
]
