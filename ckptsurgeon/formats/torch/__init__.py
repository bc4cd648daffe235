"""Reads and writes torch's containers: zip archives, distributed checkpoints, ZeRO, TorchScript."""
