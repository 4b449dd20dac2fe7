"""A private Slurm cluster with simulated GPUs, for tests, the demo and people (scripts/testbed)."""
