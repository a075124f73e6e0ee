"""The parts of http_provider.py."""
