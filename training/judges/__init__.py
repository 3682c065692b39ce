"""Networks that judge generated pictures: other architectures, other seeds, never a condition and never in a loss."""
