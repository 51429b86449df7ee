"""macbench calibrate: the knobs that read an asked share of bytes, found on held-out samples."""
