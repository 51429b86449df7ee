"""Attention over the paged KV cache: torch references, and the kernels that agree with them."""
