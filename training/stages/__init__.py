"""The networks of the avatar, one training stage a file, in the order in which they are trained."""
