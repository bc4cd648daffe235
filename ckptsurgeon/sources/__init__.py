"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""

from ._http import Address, Patience, address_of, announced, ask, broken, refusal
from ._hub_address import HubAddress, hub_address
from ._hub_client import HubQuery, asking, fetched_revision, is_offline
from ._kept import cache_folder
from .base import Advance, File, Folder, Source
from .fsspec_urls import driver_errors, file_system
from .local import broken_links, link_of
from .remote import notes_of
from .spec import SourceSpec, parse_spec
from .uri import check_address, open_source, scheme_of, shown, without_queries

__all__ = [
    "Address",
    "Advance",
    "File",
    "Folder",
    "HubAddress",
    "HubQuery",
    "Patience",
    "Source",
    "SourceSpec",
    "address_of",
    "announced",
    "ask",
    "asking",
    "broken",
    "broken_links",
    "cache_folder",
    "check_address",
    "driver_errors",
    "fetched_revision",
    "file_system",
    "hub_address",
    "is_offline",
    "link_of",
    "notes_of",
    "open_source",
    "parse_spec",
    "refusal",
    "scheme_of",
    "shown",
    "without_queries",
]
