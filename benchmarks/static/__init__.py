"""What the compilers say of the kernels, without a GPU."""
