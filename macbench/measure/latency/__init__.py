"""How long one decode step of attention takes on a GPU, beside what its bytes require.

    cases      what is timed: shapes, who hits and from where, the bytes that this must move
    data       caches, queries and rings in which exactly those heads hit
    steps      the compared methods, each as launches that a CUDA graph can hold
    reference  the same step in plain fp32 torch, and the comparison before any timing
    clock      graph replay with a cold L2 cache; machine: the card's own speed in the same run
    floor      bytes and launches as microseconds
    record     one row per point, in a parquet file that survives a kill; run: the loop

`macbench.bench.attention` is the command.
"""
