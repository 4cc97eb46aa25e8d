"""What tunings are made of."""
