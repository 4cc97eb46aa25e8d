"""What can be measured on this machine, and whether it is quiet enough to do it now."""
