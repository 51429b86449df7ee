"""Shipped sources: an English text and a question set, both small."""
