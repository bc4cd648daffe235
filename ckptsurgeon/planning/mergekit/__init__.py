"""Configurations of mergekit 0.1.5, and the tensors that they make. Opens no file, reads no tensor.

https://github.com/arcee-ai/mergekit#merge-configuration
"""
