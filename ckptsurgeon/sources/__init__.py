"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""

from .base import File, Folder, Source
from .local import broken_links, link_of
from .spec import SourceSpec, parse_spec
from .uri import open_source, scheme_of

__all__ = [
    "File",
    "Folder",
    "Source",
    "SourceSpec",
    "broken_links",
    "link_of",
    "open_source",
    "parse_spec",
    "scheme_of",
]
