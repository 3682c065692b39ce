"""Graphs to ONNX: capture, translation, names, weights apart."""
