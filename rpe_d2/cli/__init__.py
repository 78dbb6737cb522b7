"""Command lines. Each module parses arguments, calls the other packages and prints results."""

import logging
import warnings

# Detectron2 calls torch in ways that torch warns about. Users of the program cannot change that.
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: "is_fx_tracing" not in record.getMessage()
)
