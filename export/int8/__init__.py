"""Quantised layers: their steps, and which layers may have them."""
