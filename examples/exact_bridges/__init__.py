"""The parts of examples/gaussian_bridge.py."""
