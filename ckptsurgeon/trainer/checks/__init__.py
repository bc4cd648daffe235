"""What is checked before, during and after training: one small function each."""
