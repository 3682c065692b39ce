"""How long and how fast each stage trains: one table a recipe."""
