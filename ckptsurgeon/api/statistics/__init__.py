"""The verb ``stats``: runs a network on inputs, and stores statistics of the inputs and outputs of its layers."""
