"""Speed of single kernels on one CUDA card: python -m macbench.experiments.kernel_times.NAME"""
