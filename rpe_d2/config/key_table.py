"""All keys of rpe_d2, by the node that they belong to."""

from functools import lru_cache
from typing import Callable, Dict

from .baseline_keys import BASELINE_NODES
from .component_keys import COMPONENT_NODES
from .embedding_keys import EMBEDDING_NODES
from .key import Keys
from .run_keys import RUN_NODES

# For the full name of each node, a function that returns its keys. "" is the top level.
NODES: Dict[str, Callable[[], Keys]] = {
    **RUN_NODES,
    **EMBEDDING_NODES,
    **COMPONENT_NODES,
    **BASELINE_NODES,
}


@lru_cache(maxsize=None)
def all_keys() -> Dict[str, Keys]:
    """Returns the keys by the full name of their node; ``""`` is the top level."""
    return {name: keys() for name, keys in NODES.items()}
