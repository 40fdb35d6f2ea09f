"""Questions, one a file, with checks that pass or fail (to come)."""
