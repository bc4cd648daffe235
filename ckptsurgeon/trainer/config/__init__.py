"""The ``train:`` section of a configuration."""
