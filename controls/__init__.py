"""The same pipeline with one ingredient changed: nulls, planted worlds, and a verdict on three axes."""
