"""The chaos soak: random jobs, faults and hand edits for a time, and a checker from outside."""
