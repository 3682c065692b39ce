"""Synthetic, dressed and posed people with exact annotations."""
