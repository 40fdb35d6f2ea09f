"""Toy models of superposition: the published results, and the questions they leave open."""
