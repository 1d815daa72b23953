"""Packaging: the repo's top-level folders become the sub-packages of one import name, `halfbridge`."""

from pathlib import Path

from setuptools import setup

PACKAGES = {
    "halfbridge": "package",
    "halfbridge.kernels": "kernels",
    "halfbridge.kernels.cpu": "kernels/cpu",
    "halfbridge.kernels.gpu": "kernels/gpu",
    "halfbridge.solvers": "solvers",
    "halfbridge.solvers.processes": "solvers/processes",
    "halfbridge.solvers.reference": "solvers/reference",
    "halfbridge.nets": "nets",
    "halfbridge.training": "training",
    "halfbridge.training.bridge": "training/bridge",
    "halfbridge.training.data": "training/data",
    "halfbridge.training.losses": "training/losses",
    "halfbridge.training.objectives": "training/objectives",
    "halfbridge.commands": "package/commands",
    "halfbridge.demo": "package/demo",
}

PLOTS = ["matplotlib>=3.8"]
DEMO = [*PLOTS, "scikit-learn>=1.4"]
IMAGES = ["pillow>=10"]
LOGS = ["tensorboard>=2.15"]
CONFIG = ["pyyaml>=6", "tomli>=2; python_version < '3.11'"]
DISTRIBUTED = ["accelerate>=1.0"]
DIFFUSERS = ["diffusers>=0.30"]
FAST = ["numba>=0.60"]
GPU = ["triton>=3.2; platform_system == 'Linux'"]  # torch's CUDA builds bring their own
TRANSPORT = ["POT>=0.9"]
ENGINES = ["torchdiffeq>=0.2.4", "torchsde>=0.2.6"]
TEST = [
    *DEMO,
    *FAST,
    *GPU,
    *TRANSPORT,
    *ENGINES,
    *IMAGES,
    *LOGS,
    *CONFIG,
    *DISTRIBUTED,
    *DIFFUSERS,
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
]

setup(
    name="halfbridge",
    version="0.1.0",
    description="Numerically explicit SDE and ODE solvers for score-based generative models and Schrödinger bridges",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"halfbridge": ["py.typed"]},
    install_requires=["torch>=2.6", "numpy>=1.26", "scipy>=1.11", "safetensors>=0.4", "tqdm>=4.60"],
    extras_require={
        "fast": FAST,
        "gpu": GPU,
        "plots": PLOTS,
        "transport": TRANSPORT,
        "engines": ENGINES,
        "demo": DEMO,
        "images": IMAGES,
        "train": [*DEMO, *IMAGES, *LOGS, *CONFIG],
        "distributed": DISTRIBUTED,
        "diffusers": DIFFUSERS,
        "test": TEST,
        "dev": [*TEST, "mypy>=1.10", "ruff>=0.6", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["halfbridge = halfbridge.cli:main"]},
)
