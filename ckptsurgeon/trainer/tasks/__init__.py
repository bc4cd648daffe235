"""The tasks that a model can be trained for; each module defines one as ``TASK``."""

from ._task import Batch, Loss, Task

__all__ = ["Batch", "Loss", "Task"]
