"""ONNX files as graphs: reading, writing, looking around in them, putting several together, casting."""
