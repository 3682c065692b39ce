"""Bundles as package data: `avatar/` is the embedded one that `Generator()` opens."""
