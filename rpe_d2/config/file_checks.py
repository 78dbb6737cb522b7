"""Checks of configuration files before they are merged.

yacs fails on some mistakes without naming the file, the key or the value.
"""

from typing import Any, Dict

import yaml
from detectron2.config import CfgNode


def check_config_file(config_file: str, cfg: CfgNode) -> None:
    """Checks that a file and its bases assign values to keys and nodes to nodes of ``cfg``.

    Raises:
        ValueError: The message is one line with the file, the key, its value and what is allowed.
        OSError, yaml.YAMLError: A file cannot be read.
    """

    class Checked(CfgNode):
        """Reads files as Detectron2 does and checks each before it is merged into its bases."""

        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Dict[str, Any]:
            with cls._open_cfg(filename) as file:
                try:
                    content = yaml.safe_load(file)
                except UnicodeDecodeError as error:
                    raise ValueError(f"{filename} is not a text file: {error}") from error
            _check_content(filename, content, cfg)
            return super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)

    try:
        Checked.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise ValueError(f"{config_file}: _BASE_ leads from a file back to itself") from error


def _check_content(filename: str, content: Any, cfg: CfgNode) -> None:
    if not isinstance(content, dict):
        kind = type(content).__name__
        problem = "is empty" if content is None else f"holds the {kind} {content!r}"
        raise ValueError(f"{filename} {problem}; allowed: keys of a configuration, 'MODEL: {{…}}'")
    bases = content.get("_BASE_", [])
    if not all(isinstance(base, str) for base in (bases if isinstance(bases, list) else [bases])):
        raise ValueError(f"{filename}: _BASE_ is {bases!r}; allowed: a file, or a list of files")
    _check_nodes(filename, content, cfg)


def _check_nodes(filename: str, content: Dict[Any, Any], cfg: CfgNode, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ValueError(f"{filename}: the key {name} is not text; allowed: MODEL, SOLVER …")
        node = cfg.get(key)
        if not isinstance(node, CfgNode):
            continue
        if not isinstance(value, dict):
            raise ValueError(
                f"{filename}: {name} is {value!r}; allowed: its keys, {_first_key(name, node)} …"
            )
        _check_nodes(filename, value, node, f"{name}.")


def _first_key(name: str, node: CfgNode) -> str:
    return f"{name}.{next(iter(node))}"
