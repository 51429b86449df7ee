"""Attention over the paged KV cache: torch references, and the kernels that must agree with them."""
