"""Reads the files of TensorFlow's checkpoints: tables, protocol buffers, and texts that name a checkpoint."""
