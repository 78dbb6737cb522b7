"""Metadata of rpe_d2. torch, torchvision and Detectron2 are not listed: see install_requires."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
readme = root / "README.md"
package = (root / "rpe_d2" / "__init__.py").read_text(encoding="utf-8")  # importing it needs torch

setup(
    name="rpe_d2",
    version=re.search(r'__version__ = "(.+)"', package)[1],
    description="Recurrent pixel embeddings and spatial propagation for Detectron2",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["rpe_d2", "rpe_d2.*"]),
    package_data={"rpe_d2.ops": ["*.cpp"]},  # built at its first use, where there is a compiler
    python_requires=">=3.11",
    # torch and torchvision have to be a matching pair, chosen for the machine; Detectron2 is not on
    # PyPI. tools/env.sh installs the three; whoever has them keeps them.
    install_requires=[
        "numpy",  # arrays of the evaluators and the datasets
        "scipy",  # connected components on graphs, k-means, matching, the beta function of the cap bound
        "opencv-python-headless",  # drawing and contours; headless: servers have no display
        "PyYAML",  # names what is wrong with a configuration file
        "pycocotools>=2.0.2",  # RLE masks and the COCO protocol
        "fvcore>=0.1.5,<0.1.6",  # config nodes, checkpoints; the range that Detectron2 accepts
        "iopath>=0.1.7,<0.1.10",  # paths of checkpoints and datasets; the range of Detectron2
        "matplotlib",  # figures of tools/visualize.py
        "Pillow",  # reading and writing pictures
        "tabulate",  # result tables
        "tqdm",  # progress of the tools
        "tensorboard",  # training curves
    ],
    extras_require={
        # formatters pinned: another version formats differently (tests/test_format.py); xdist: tests on all cores
        "dev": ["black==25.1.0", "isort==6.0.1", "pytest>=8", "pytest-xdist"],
        "crf": ["pydensecrf2"],  # tools/benchmark.py spn compares with a dense CRF; compiles C++
        "wandb": ["wandb"],  # WANDB_PROJECT: the curves of a run, where many look at them
    },
    entry_points={"console_scripts": ["rpe-d2-train = rpe_d2.cli.train_net:main"]},
)
