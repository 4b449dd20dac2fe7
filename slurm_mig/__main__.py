"""`python -m slurm_mig`: the same as `slurm-mig`, where nothing is installed."""

from slurm_mig.cli import main

if __name__ == "__main__":
    main(prog_name="slurm-mig")
