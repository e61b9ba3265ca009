"""Packages of the wheel: bmx, and the recipes of configs/ as bmx.configs."""

import setuptools

setuptools.setup(
  packages=[*setuptools.find_packages(include=['bmx', 'bmx.*']), 'bmx.configs'],
  package_dir={'bmx.configs': 'configs'},
)
