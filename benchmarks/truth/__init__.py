"""Are the numbers right? Measured calls against bare ones, and stages against the kernels that the GPU really ran."""
