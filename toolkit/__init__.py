"""Methods: toy models, sparse autoencoders, metrics and the command that fits them. Knows nothing of nulls or verdicts."""
