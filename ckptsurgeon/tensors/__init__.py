"""What a tensor is before anyone reads its bytes: dtype, shape, where it lies."""
