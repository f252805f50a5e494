"""What the offline jobs and the service both run: bundles, ONNX graphs, Redis. Never imports torch."""
