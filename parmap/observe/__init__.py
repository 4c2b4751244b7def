"""What watches a call."""
