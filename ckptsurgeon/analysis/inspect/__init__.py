"""What ``inspect`` finds, as plain data."""
