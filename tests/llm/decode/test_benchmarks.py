"""The benchmarks run: layouts agree, and the GPU's script runs on a CPU or says what it needs."""

import pytest
import torch

from benchmarks import decode, decode_gpu


@pytest.mark.parametrize("slots", [(7, 7, 7), (3, 9, 3), (12, 5, 1)])
def test_layouts_agree(slots: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ways = decode.layouts(2, (3, 2, 8, slots), torch.float32)
    truth = ways.pop("padded")()
    for way in ways.values():
        torch.testing.assert_close(way(), truth, atol=1e-5, rtol=1e-5)


def test_the_gpu_benchmark_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    decode_gpu.main(["--device", "cpu", "--batches", "2", "--contexts", "260", "--steps", "4", "--layers", "1"])
    last = capsys.readouterr().out.strip().splitlines()[-1].split("|")
    assert [int(last[1]), int(last[2])] == [2, 260]
    assert all(float(cell.replace(",", "").rstrip("% ")) > 0 for cell in last[3:9])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_says_what_it_needs() -> None:
    with pytest.raises(SystemExit, match="one GPU with 16 GB"):
        decode_gpu.main([])
