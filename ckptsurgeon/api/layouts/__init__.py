"""Changes the layout of a checkpoint to that of another library (``--layout``)."""
