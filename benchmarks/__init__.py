"""Microbenchmarks: `python -m benchmarks.<name>` prints tidy rows. Peers run in the same process, turn by turn."""
