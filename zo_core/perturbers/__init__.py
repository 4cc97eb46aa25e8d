"""How theta + c u comes to be while an objective looks at it; a file each."""
