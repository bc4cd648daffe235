"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""

from ._descriptors import Descriptor
from ._http import Address, Patience, address_of, announced, ask, broken, refusal
from ._hub_address import HubAddress, hub_address
from ._hub_answers import is_digest
from ._hub_client import HubQuery, asking, digest_listed, fetched_revision, is_offline
from ._kept import cache_folder
from ._links import leads_out
from ._memory import MemoryFile, Piece
from ._pace import allowing
from ._room import Room
from .base import Advance, File, Folder, Progress, Source
from .fsspec_urls import driver_errors, file_system
from .local import broken_links, contents, link_of
from .remote import notes_of
from .small import SMALL_BYTES, read_small
from .spec import SourceSpec, parse_spec
from .uri import check_address, open_source, scheme_of, shown

__all__ = [
    "SMALL_BYTES",
    "Address",
    "Advance",
    "Descriptor",
    "File",
    "Folder",
    "HubAddress",
    "HubQuery",
    "MemoryFile",
    "Patience",
    "Piece",
    "Progress",
    "Room",
    "Source",
    "SourceSpec",
    "address_of",
    "allowing",
    "announced",
    "ask",
    "asking",
    "broken",
    "broken_links",
    "cache_folder",
    "check_address",
    "contents",
    "digest_listed",
    "driver_errors",
    "fetched_revision",
    "file_system",
    "hub_address",
    "is_digest",
    "is_offline",
    "leads_out",
    "link_of",
    "notes_of",
    "open_source",
    "parse_spec",
    "read_small",
    "refusal",
    "scheme_of",
    "shown",
]
