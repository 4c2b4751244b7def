"""``python -m parmap``."""
