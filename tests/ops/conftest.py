import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Many small operations on several threads become slow by a factor of 100 when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
