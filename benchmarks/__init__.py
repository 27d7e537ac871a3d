"""What the house costs, in ratios: `make bench-store`."""
