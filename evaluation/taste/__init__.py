"""Simulated people whose taste is known: how many duels find it, and how much is lost to the best."""
