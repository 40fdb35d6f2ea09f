"""The same pipeline with one ingredient changed: nulls, planted worlds and the verdict (to come)."""
