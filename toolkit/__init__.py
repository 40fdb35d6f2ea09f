"""Methods: toy models, sparse autoencoders, metrics, the command. Knows nothing of nulls or verdicts."""
