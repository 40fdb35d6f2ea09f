"""One question a file, on the activations of a language model."""
