"""What setup.cfg can't say: the top-level properties/ is shipped inside of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["recbole_cdr_ext", "recbole_cdr_ext.*"]), "recbole_cdr_ext.properties"],
    package_dir={"recbole_cdr_ext.properties": "properties"},
    package_data={
        "recbole_cdr_ext.properties": ["*.yaml", "*/*.yaml", "*.json"],
        "recbole_cdr_ext.settings": ["*.json"],
    },
)
