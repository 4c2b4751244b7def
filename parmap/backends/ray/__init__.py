"""Plan ``ray``: tasks of Ray."""
