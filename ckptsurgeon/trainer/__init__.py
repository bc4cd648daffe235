"""The trainer: models that come with ckptsurgeon, and what trains them. Importing it loads no torch."""
