"""From losses at perturbed points to a gradient estimate; a file each."""
