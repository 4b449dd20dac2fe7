"""MIG instances in the words of other worlds: containers, Kubernetes, virtual machines. Pure."""
