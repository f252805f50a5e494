"""The peers' own files: each starts one server, written as that server's documentation would, in its own environment.

They import their framework, numpy, ONNX Runtime, redis-py and what reads a bundle. Where a comment says what a setting is
for, it is one that the documentation has and that makes the peer faster.
"""
