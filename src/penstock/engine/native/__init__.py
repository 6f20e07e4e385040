"""The CPU kernels: C++ sources, their build, and the model that runs on them."""
