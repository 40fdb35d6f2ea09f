"""Questions, one a file, with checks that pass or fail: python -m experiments list | run NAME | report."""
