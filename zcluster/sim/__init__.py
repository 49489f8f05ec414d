"""Proof: the production code in a simulated world, and checkers that stand outside the code they check."""
