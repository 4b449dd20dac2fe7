"""The planner: which GPUs to cut differently, by an integer programme over classes of GPUs."""
