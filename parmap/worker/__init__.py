"""What happens around one chunk, inside a worker: the only code that runs remotely."""
