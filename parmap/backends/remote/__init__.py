"""Plans that start Dask workers on other machines."""
