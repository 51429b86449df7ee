"""A run: what is asked for and not stored yet is decoded, scored and stored."""
