"""Reads repositories of the Hugging Face Hub, and the hub's cache."""
