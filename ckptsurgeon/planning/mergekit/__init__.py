"""Configurations of mergekit 0.1.5: what they say, and the tensors that they ask for. Opens nothing, reads no tensor.

https://github.com/arcee-ai/mergekit#merge-configuration
"""
