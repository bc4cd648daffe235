"""What ``inspect`` finds, as plain data."""

from .adapter import AdapterSettings, adapter_settings
from .inspection import Inspection, inspection_of
from .summary import StatsSummary

__all__ = ["AdapterSettings", "Inspection", "StatsSummary", "adapter_settings", "inspection_of"]
