"""Out of this process: exports, Ray, NVIDIA's Triton Inference Server. Imports every room but
`cli`.
"""
