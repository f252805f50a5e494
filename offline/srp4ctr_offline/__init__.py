"""The offline jobs, one a file: from logs to a published model version."""
