"""One file an operation: what a benchmark must know of it."""
