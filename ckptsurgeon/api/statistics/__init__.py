"""The verb ``stats``: runs a network on inputs, and stores statistics of what its layers compute."""
