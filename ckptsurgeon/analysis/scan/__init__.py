"""What reading a file would import and call, found by decoding it and never by running it."""
