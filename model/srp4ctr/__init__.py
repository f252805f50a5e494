"""srp4ctr: pre-train on behaviour sequences, cache user states, score candidates by cross-attention."""

import os

__version__ = "0.1.0"

# ONNX Runtime from 1.29 on tells its makers what it runs, and keeps an identifier in the home folder, unless it is told not to
# before it is loaded. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
