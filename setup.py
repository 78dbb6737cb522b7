"""The parts of the packaging that pyproject.toml cannot express; the metadata is there."""

from setuptools import find_packages, setup

setup(
    # The repository's configs/ becomes rpe_d2/configs, where rpe_d2.get_config_file looks.
    packages=[*find_packages(include=["rpe_d2", "rpe_d2.*"]), "rpe_d2.configs"],
    package_dir={"rpe_d2.configs": "configs"},
    include_package_data=False,  # what package_data names, and nothing else
    package_data={
        # The plugin's functions, and the models of rpe-d2 models.
        "rpe_d2": ["napari.yaml", "weights/*/*"],
        "rpe_d2.configs": ["**/*.yaml", "**/*.py"],
        "rpe_d2.ops": ["*.cpp"],  # compiled at first use, where there is a compiler
    },
)
