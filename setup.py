"""Packaging: `sprfast`, and the top-level folders `kernels` and `bench` as `sprfast.kernels` and `sprfast.bench`."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sprfast" / "__init__.py").read_text()).group(1)
LOADGEN = "mlcommons-loadgen>=6; sys_platform == 'linux' and platform_machine == 'x86_64'"  # where it has wheels
TRITON = "triton>=3.6; sys_platform == 'linux'"  # CUDA builds of torch bring their own

setup(
    name="sprfast",
    version=VERSION,
    description="Inference engine for score-based anomaly detection on production lines",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={"sprfast": "sprfast", "sprfast.kernels": "kernels", "sprfast.bench": "bench"},
    packages=["sprfast", "sprfast.backends", "sprfast.kernels", "sprfast.bench", "sprfast.bench.libraries"],
    package_data={"sprfast": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "numpy>=2.0",
        "safetensors>=0.5",
        "pillow>=11",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "matplotlib>=3.9",
        "typer>=0.15",
        "rich>=13",
        "jinja2>=3.1",
        "markupsafe>=2.1",
    ],
    extras_require={
        "demo": ["scikit-image>=0.25"],
        "triton": [TRITON],
        "bench": ["pytest-benchmark>=5", LOADGEN, "nvidia-ml-py>=12"],
        "peers": [
            "onnx>=1.23",
            "onnxscript>=0.7",
            "onnxruntime>=1.32",
            "openvino>=2026.4",
            "ncnn>=1.0.20261020",
            "pnnx>=20261020",
            "MNN>=3.6.1",
        ],
        "dev": [
            "scikit-image>=0.25",
            TRITON,
            "pytest>=8",
            "pytest-benchmark>=5",
            LOADGEN,
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ruff==0.17.6",
            "mypy==2.4.1",
        ],
    },
    entry_points={"console_scripts": ["sprfast = sprfast.cli:main"]},
)
