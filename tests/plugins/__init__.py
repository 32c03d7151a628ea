"""Fixtures and hooks of all tests: conftest.py names the modules."""
