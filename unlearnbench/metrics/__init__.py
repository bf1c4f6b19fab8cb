"""Metrics, one file each, and the networks and detectors that they use."""
