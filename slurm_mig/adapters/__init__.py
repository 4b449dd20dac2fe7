"""One module per outside thing: Slurm, NVML, Slurm's files, the nodes, the state directory."""
