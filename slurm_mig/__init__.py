"""Reshapes NVIDIA MIG GPUs to what the Slurm queue asks for, while the node's jobs run."""

__version__ = "0.1.0"
