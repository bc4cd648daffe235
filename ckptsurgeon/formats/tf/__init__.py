"""Reads and writes the files of TensorFlow checkpoints: LevelDB tables, protocol buffers, and small text files."""
