"""One file or folder per place. Backends move bytes; they know nothing of order or retries."""
