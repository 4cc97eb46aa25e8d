"""What task files are made of. Nothing here is a task."""
