"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""

from .base import Advance, File, Folder, Source
from .local import broken_links, link_of
from .remote import notes_of
from .spec import SourceSpec, parse_spec
from .uri import open_source, scheme_of, shown

__all__ = [
    "Advance",
    "File",
    "Folder",
    "Source",
    "SourceSpec",
    "broken_links",
    "link_of",
    "notes_of",
    "open_source",
    "parse_spec",
    "scheme_of",
    "shown",
]
