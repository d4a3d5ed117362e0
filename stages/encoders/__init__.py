"""Frozen networks: pixels in, features out, stored once for each data set and shared by every detector that asks for the same layers."""
