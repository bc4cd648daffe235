"""Reads bytes from files and servers, fetches files, and writes signed outputs whole or not at all."""
