"""Training on a GPU, by ``ckpt train`` and by two other loops, side by side."""
