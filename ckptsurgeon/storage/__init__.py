"""Reads bytes from files and servers, fetches files, writes outputs completely or not at all, and signs them."""
