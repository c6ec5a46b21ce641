"""Optimisers that torch does not have, and how a network's parameters are grouped for them."""
