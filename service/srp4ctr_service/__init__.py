"""The online service: FastAPI in front of ONNX Runtime and Redis. Never imports torch."""
