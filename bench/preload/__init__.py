"""What is loaded into a run's process before its first line: C, built on first use."""
