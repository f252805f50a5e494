"""`make bench-freshness`: how soon an event is in the scores, and what keeping states costs. Never imports torch."""
