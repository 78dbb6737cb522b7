"""Mean shift in the fused kernels of attention: their use, precision and memory."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rpe_d2.ops.mean_shift import mean_shift
from tests.helpers.embeddings import OPTIONS, grid_positions, unit_vectors
from tests.reference.memory import peak_bytes


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_inputs_are_computed_in_float32(self, dtype):
        x = unit_vectors(60, 4, dtype=torch.float32).to(dtype)
        options = dict(positions=grid_positions(60).to(dtype), spatial_bandwidth=3.0)
        moved = mean_shift(x, 0.2, 5, **options)
        options["positions"] = options["positions"].float()
        assert moved.dtype == dtype
        assert torch.equal(moved, mean_shift(x.float(), 0.2, 5, **options).to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_changes_nothing(self, dtype):
        x = unit_vectors(60, 4, dtype=torch.float32).requires_grad_()
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                moved = mean_shift(x, 0.2, 5)
            results.append((moved, *torch.autograd.grad(moved[0].sum(), x)))
        assert results[1][0].dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.filterwarnings("ignore:.*[Ff]lash attention")
class TestFusedBackend:
    @pytest.mark.parametrize("dim", [3, 16, 17, 32, 64])
    @pytest.mark.parametrize("batch", [(), (2,)])
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_is_used(self, dim, batch, options):
        x = unit_vectors(*batch, 50, dim, dtype=torch.float32).requires_grad_()
        bandwidth = torch.tensor(0.4, requires_grad=True)
        positions = torch.rand(*batch, 50, 2, requires_grad=True)
        mask = torch.arange(50).expand(2, 50) < 40 if batch else None
        # torch raises if the only allowed backend does not support the inputs.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            moved = mean_shift(x, bandwidth, 2, positions=positions, mask=mask, **options)
            moved = moved[0] if options.get("shift_positions") else moved
            moved.square().mean(dim=-1)[..., 0].sum().backward()
            keys = x.detach()[..., :20, :]
            mean_shift(x, 0.4, 1, keys=keys).sum().backward()
        assert x.grad.isfinite().all()

    @pytest.mark.parametrize("dim", [3, 16, 17])
    def test_shapes_suit_the_kernels_of_gpus_too(self, dim, monkeypatch):
        shapes = []
        attention = F.scaled_dot_product_attention

        def record(query, key, value, **options):
            shapes.extend(tensor.shape for tensor in (query, key, value))
            return attention(query, key, value, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", record)
        options = dict(positions=torch.rand(9, 2), spatial_bandwidth=1.0, shift_positions=True)
        mean_shift(unit_vectors(9, dim, dtype=torch.float32), 0.3, 1, **options)
        assert len(shapes) == 3 and len(set(shapes)) == 1
        assert len(shapes[0]) == 4 and shapes[0][-1] % 8 == 0

    def test_would_not_be_used_without_padding(self):
        """Query and key are wider than the value once a kernel on positions is folded in."""
        query, value = torch.randn(1, 1, 50, 6), torch.randn(1, 1, 50, 3)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            with pytest.raises(RuntimeError, match="No available kernel"):
                F.scaled_dot_product_attention(query, query, value)


@pytest.mark.parametrize(
    "options",
    [
        ", positions=positions, spatial_bandwidth=5.0, shift_positions=True)[0]",
        pytest.param(")", marks=pytest.mark.slow),
    ],
)
def test_memory_is_linear(options):
    peak = peak_bytes(
        setup="""
from rpe_d2.ops.mean_shift import mean_shift
torch.set_num_threads(1)
x = torch.nn.functional.normalize(torch.randn(16384, 32), dim=1).requires_grad_()
positions = torch.rand(16384, 2) * 128
""",
        measured=f"mean_shift(x, 0.3, 2{options}.sum().backward()",
    )
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < 200e6  # one dense matrix of 16,384 x 16,384 has 1 GiB
