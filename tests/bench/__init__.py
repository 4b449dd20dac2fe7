"""Benchmarks, run by scripts/bench: each prints ratios against a baseline of the same run."""
