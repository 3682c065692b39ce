"""Pictures of a user's own: found in folders and shards, looked at, fitted to a model's size."""
