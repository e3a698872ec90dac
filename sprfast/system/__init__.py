"""The machine: files, devices, signals, processes. Knows nothing of anomalies. Imports the face,
and asks `kernels` what it has.
"""
