"""Checks of configuration files and KEY VALUE pairs before they are merged: yacs fails on some without naming them."""

from typing import Any, Dict, List

import yaml
from detectron2.config import CfgNode


def check_config_file(config_file: str, cfg: CfgNode) -> None:
    """Checks that a file and those it is based on hold keys where ``cfg`` has keys.

    Raises:
        ValueError: one line that names the file, the key, the value and what is allowed.
        OSError, yaml.YAMLError: a file cannot be read.
    """

    class Checked(CfgNode):
        """Reads files as Detectron2 does, each checked before it is merged into what is based on it."""

        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Dict[str, Any]:
            with cls._open_cfg(filename) as file:
                try:
                    content = yaml.safe_load(file)
                except UnicodeDecodeError as error:
                    raise ValueError(f"{filename} is no text: {error}") from error
            _check_content(filename, content, cfg)
            return super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)

    try:
        Checked.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise ValueError(f"{config_file}: _BASE_ leads from a file back to itself") from error


def check_overrides(opts: List[str], cfg: CfgNode) -> None:
    """Checks that KEY VALUE pairs give values to keys, not to groups of keys.

    Raises:
        ValueError: one line that names the key.
    """
    for key, value in zip(opts[::2], opts[1::2]):
        node = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode):
                raise ValueError(f"Non-existent key: {key}")
            node = node.get(part)
        if isinstance(node, CfgNode):
            raise ValueError(
                f"{key} is {value}; allowed: values of its keys, {_first_key(key, node)} …"
            )


def _check_content(filename: str, content: Any, cfg: CfgNode) -> None:
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds the {type(content).__name__} {content!r}"
        raise ValueError(f"{filename} {found}; allowed: keys of a configuration, 'MODEL: {{…}}'")
    bases = content.get("_BASE_", [])
    if not all(isinstance(base, str) for base in (bases if isinstance(bases, list) else [bases])):
        raise ValueError(f"{filename}: _BASE_ is {bases!r}; allowed: a file, or a list of files")
    _check_nodes(filename, content, cfg)


def _check_nodes(filename: str, content: Dict[Any, Any], cfg: CfgNode, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ValueError(f"{filename}: the key {name} is no text; allowed: MODEL, SOLVER …")
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
