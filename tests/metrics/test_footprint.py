"""What a call costs, against sums that can be done by hand."""

import subprocess
import sys
import textwrap

import pytest
import torch

from stages.metrics.footprint import flops, peak_memory


def test_a_convolution_costs_two_operations_a_multiply_add():
    """8 -> 4 channels, 3 x 3, on 10 x 10 positions: 8 * 4 * 9 * 100 multiply-adds."""
    network = torch.nn.Conv2d(8, 4, 3, padding=1, bias=False)
    assert flops(lambda: network(torch.zeros(1, 8, 10, 10))) == 2 * 8 * 4 * 9 * 100


def test_a_triangular_solve_is_counted():
    """One right-hand side at each of 5 positions in 6 dimensions: 1 + 2 + ... + 6 multiply-adds each."""
    factors = torch.eye(6).expand(5, 6, 6)
    assert flops(lambda: torch.linalg.solve_triangular(factors, torch.ones(5, 6, 1), upper=False)) == 2 * 5 * 21


def test_attention_is_counted_on_the_cpu_as_on_a_gpu():
    """2 heads of width 4 over 6 tokens: every query meets every key, and every weight every value."""
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    asked = flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))
    assert asked == 2 * (2 * 6 * 6 * 4 + 2 * 6 * 6 * 4)


def test_the_peak_of_a_call_is_seen_though_its_memory_is_gone_afterwards():
    """In a process of its own, whose memory no other test has grown: 200 MB that are held for a moment and that no one keeps."""
    call = textwrap.dedent(
        """
        import time
        from stages.metrics.footprint import peak_memory

        def hold():
            block = b"x" * 200_000_000
            time.sleep(0.5)

        small = peak_memory(lambda: None)
        large = peak_memory(hold)
        print(large.rss_mb - small.rss_mb)
        """
    )
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(200, abs=60)


def test_an_error_of_the_call_comes_through_and_nothing_keeps_watching():
    import threading

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
    assert threading.active_count() == before
