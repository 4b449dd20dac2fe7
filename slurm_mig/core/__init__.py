"""The pure part: decisions only. No I/O, no clock, no third-party import."""
