"""Plan ``joblib``."""
