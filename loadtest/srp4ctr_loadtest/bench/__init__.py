"""`make bench`: each aim of performance, measured in one run and shown beside its aim."""
