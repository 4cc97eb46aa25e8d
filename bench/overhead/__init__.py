"""What measuring costs: the same step watched and not, in turns, in one process."""
