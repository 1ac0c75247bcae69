"""Kept for tools that expect it; all metadata is in setup.cfg."""

from setuptools import setup

setup()
