"""Compares the weights with config.json: shapes, rows, the tensors that each layer has, tied output layers."""
