"""Studies: what the reports measure beyond a run's own metrics."""
