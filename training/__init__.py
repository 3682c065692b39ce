"""Training of BoLID's models and synthesis of their data."""
