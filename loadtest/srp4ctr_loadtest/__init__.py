"""Load tests and benchmarks of the running service. Never imports torch."""
