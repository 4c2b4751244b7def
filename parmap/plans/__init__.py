"""Where it is computed: plans as values, and plans at work."""
