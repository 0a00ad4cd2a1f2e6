"""TensorRT engines: built by a child process, opened, run by the CUDA driver."""
