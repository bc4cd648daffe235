"""What models are trained for, one file each: ``TASK``."""

from ._load import load_task, task_file

__all__ = ["load_task", "task_file"]
