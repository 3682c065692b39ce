"""The networks of a BoLID checkpoint: diffusers and transformers classes, and the body-ID modules between them."""
