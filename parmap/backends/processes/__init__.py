"""Plan ``processes``: our own pool of worker processes. See README.md beside this file."""
