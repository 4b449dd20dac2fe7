"""Commands with a module of their own; slurm_mig/cli.py registers them."""
