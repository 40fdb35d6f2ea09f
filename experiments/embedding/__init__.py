"""One question a file, on the token embedding of a language model."""
