"""What a wheel holds: the house as it stands here, in a package `outlast` (see command.py)."""

from setuptools import find_namespace_packages, setup

ROOMS = find_namespace_packages(include=["slurm*", "trainer*", "envs*", "recipes*"], exclude=["recipes.demo*"])
setup(
    packages=["outlast", *(f"outlast.{room}" for room in ROOMS)],
    package_dir={"outlast": "."},
    package_data={"": ["*.yaml", "*.sh", "*.json", "*.def", "*.css"]},
)
