"""Installs the folders beside `macbench/` as its sub-packages: `kernels/` as macbench.kernels …"""

from setuptools import find_packages, setup

ROOMS = ("kernels", "conf", "experiments", "plots")

packages = set(find_packages(include=["macbench", "macbench.*"]))
packages |= {
    f"macbench.{name}" for room in ROOMS for name in find_packages(include=[room, f"{room}.*"])
}
setup(
    packages=sorted(packages),
    package_dir={f"macbench.{room}": room for room in ROOMS},
)
