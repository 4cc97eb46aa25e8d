"""Distributions made of others: some entries only, scaled, or of low rank."""
