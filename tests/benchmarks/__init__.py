"""Workloads that parmap and its peers run side by side: ``python -m tests.benchmarks``."""
