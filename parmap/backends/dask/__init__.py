"""Plan ``dask``: clusters of Dask."""
