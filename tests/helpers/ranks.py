"""The end of a process that evaluates a share of the data."""

import json
import os
import sys
from typing import Any

import torch
from detectron2.utils import comm


def write_and_exit(results: Any, nothing: Any, out: str) -> None:
    """Writes the results of the main process, checks those of the others, and ends them all.

    A thread of torch's gloo backend sometimes outlives the interpreter and aborts the process after
    the test. Several processes therefore exit at once. A single process goes on.

    Args:
        results: what the evaluators of this process returned.
        nothing: what they have to return on all processes but the main one.
        out: the JSON file to write.
    """
    if comm.is_main_process():
        with open(out, "w") as file:
            json.dump(results, file)
    else:
        assert results == nothing
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)
