"""When something runs: the one loop, and the policies that cut its input."""
