"""Packaging of medgan_nb. Everything that changes is in settings.ini."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

EXTRAS = {name: cfg[f"{name}_requirements"].split() for name in ("dev", "docs", "cluster", "dicom")}


class BuildWithPapers(build_py):
    "Puts the study notebooks and the papers' numbers into the package: an install finds them."

    def run(self):
        super().run()
        if not self.editable_mode:
            ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
            target = Path(self.build_lib) / "medgan_nb" / "papers"
            shutil.copytree("papers", target, ignore=ignore, dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildWithPapers},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    package_data={"medgan_nb": ["weights/*.safetensors"]},
    packages=find_packages(include=["medgan_nb", "medgan_nb.*"]),
    python_requires=f">={cfg['min_python']},<3.14",
    install_requires=cfg["requirements"].split(),
    extras_require=EXTRAS,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
