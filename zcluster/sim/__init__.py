"""Proof: production code in simulated worlds, and on every disk that a crash can leave behind."""
