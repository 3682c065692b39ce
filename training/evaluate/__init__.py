"""How good a bundle is, on people it has never seen, through the SDK that its users call."""
