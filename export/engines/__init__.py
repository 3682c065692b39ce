"""What a TensorRT engine is built for, and the process that builds it."""
