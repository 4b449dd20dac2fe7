"""Random clusters, and the planners that the benchmark compares with."""
