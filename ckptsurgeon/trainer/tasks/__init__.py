"""The tasks that a model can be trained for; each module defines one as ``TASK``."""

from ._load import load_task, task_file
from ._task import Batch, Loss, Task

__all__ = ["Batch", "Loss", "Task", "load_task", "task_file"]
