"""Data sets as four canonical Parquet tables: events, labelled rows, items, users; with a report of what is in them."""
