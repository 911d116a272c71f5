"""What the speed benchmarks share: the work that all programs do, the programs, their clock, and the tables."""
