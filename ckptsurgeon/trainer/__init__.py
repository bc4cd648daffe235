"""The trainer: the bundled models, and the code that trains them. Importing this package does not import torch."""
