"""srp4ctr: pre-train on behaviour sequences, cache user states, score candidates by cross-attention."""

__version__ = "0.1.0"
