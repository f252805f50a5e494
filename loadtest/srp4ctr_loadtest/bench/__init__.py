"""`make bench`: each aim of performance that needs no peer, measured in one run and shown beside its aim."""
