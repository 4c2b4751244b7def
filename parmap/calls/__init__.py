"""What is computed: maps, grids, graphs, single calls."""
