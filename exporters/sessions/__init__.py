"""A model opened in a runtime: run it, bind it to arrays, look at its inner tensors and kernels."""
