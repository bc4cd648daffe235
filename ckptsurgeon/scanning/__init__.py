"""What reading a file would import and call, found by decoding it and never by running it."""

from .findings import Fault, Finding, Scan, Use, Verdict
from .scan import scan_path

__all__ = ["Fault", "Finding", "Scan", "Use", "Verdict", "scan_path"]
