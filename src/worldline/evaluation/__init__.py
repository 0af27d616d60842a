"""Metrics, protocols as data, and the fixed benchmark suites."""
