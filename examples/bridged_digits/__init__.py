"""Bridges of digits: the parts of examples/digits_bridge.py."""
