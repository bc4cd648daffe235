"""The trainer: models that come with ckptsurgeon, and the code that trains them. Importing it does not import torch."""
