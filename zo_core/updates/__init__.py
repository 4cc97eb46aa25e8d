"""Rules that move theta along an estimate; a file each."""
