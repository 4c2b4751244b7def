"""Executors and pools of the user's own."""
