"""Counting and statistics: what a decode read, and what the results say."""
