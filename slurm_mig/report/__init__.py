"""The report: one HTML page that shows the cluster's GPUs. Pure functions, no outside resource."""
