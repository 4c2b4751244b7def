"""What crosses the border between the caller and a worker."""
