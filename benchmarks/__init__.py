"""Side-by-side measurements with the peers. Run `python -m benchmarks` from the repository's root."""
