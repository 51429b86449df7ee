"""macbench bench: one attention step, or the decode step of a whole model, timed on a card."""
