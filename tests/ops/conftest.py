import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine, many small operations are up to 100 times slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
