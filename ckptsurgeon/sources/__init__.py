"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""

from ._http import Address, Patience, address_of, ask, broken, refusal
from ._hub_address import HubAddress, hub_address
from ._kept import cache_folder
from .base import Advance, File, Folder, Source
from .fsspec_urls import driver_errors, file_system
from .local import broken_links, link_of
from .remote import notes_of
from .spec import SourceSpec, parse_spec
from .uri import open_source, scheme_of, shown, without_queries

__all__ = [
    "Address",
    "Advance",
    "File",
    "Folder",
    "HubAddress",
    "Patience",
    "Source",
    "SourceSpec",
    "address_of",
    "ask",
    "broken",
    "broken_links",
    "cache_folder",
    "driver_errors",
    "file_system",
    "hub_address",
    "link_of",
    "notes_of",
    "open_source",
    "parse_spec",
    "refusal",
    "scheme_of",
    "shown",
    "without_queries",
]
