"""One folder per table and figure of the paper, and the demo: what has to be run to get it."""
