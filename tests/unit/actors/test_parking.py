"""Memory that is given back and comes again with what it held."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from torch import nn

from actors.parking import Dropped, Parking, tensors_within
from opd_ray.errors import WriteError

CPU = torch.device("cpu")
SIZE = 4_000_000  # elements; 16 MB


def resident() -> int:
    """Bytes of main memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_parked_memory_is_the_machines_and_comes_back_as_it_was() -> None:
    tensor = torch.arange(SIZE, dtype=torch.float32)
    view, array = tensor[10:20], tensor.numpy()  # numpy has its address: torch cannot resize it
    before = resident()
    parking = Parking(CPU)
    parking.park([tensor, view])
    assert parking.taken
    assert parking.nbytes == 4 * SIZE
    assert before - resident() > 0.9 * 4 * SIZE
    assert not tensor[SIZE // 2]
    parking.bring_back()
    assert (parking.taken, parking.nbytes) == (False, 0)
    assert torch.equal(tensor, torch.arange(SIZE, dtype=torch.float32))
    assert view.tolist() == array[10:20].tolist() == list(range(10, 20))


def test_memory_of_a_file_comes_back_with_what_was_written_to_it(tmp_path: Path) -> None:
    """As of a model that was loaded on a CPU and trained."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * 4096))
    tensor = torch.from_file(str(path), shared=False, size=4 * 4096, dtype=torch.uint8)
    tensor[4096:8192] = 7
    parking = Parking(CPU)
    parking.park([tensor])
    parking.bring_back()
    assert tensor[4096:8192].unique().tolist() == [7]
    assert not tensor[:4096].any()
    assert path.read_bytes() == bytes(4 * 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (700, 31)])
def test_any_tensor_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 9).to(dtype)
    kept = tensor.clone()
    parking = Parking(CPU)
    parking.park([tensor, torch.ones(2)])
    parking.bring_back()
    assert torch.equal(tensor, kept)


def test_two_groups_come_back_by_themselves_and_none_is_parked_twice() -> None:
    one, other = torch.arange(9000.0), torch.arange(9000.0)
    first, second = Parking(CPU), Parking(CPU)
    first.park([one])
    second.park([other])
    with pytest.raises(RuntimeError, match="parked here already"):
        first.park([other])
    second.bring_back()
    assert torch.equal(other, torch.arange(9000.0))
    assert not one[5000]
    first.bring_back()
    assert torch.equal(one, other)


def test_what_lies_elsewhere_stays() -> None:
    parking = Parking(torch.device("cuda"))
    tensor = torch.arange(3.0)
    assert list(tensors_within([tensor]))
    # Without a GPU nothing of it is there, and nothing of main memory is touched.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        parking.park([tensor])
    assert (parking.taken, parking.nbytes) == (True, 0)
    assert tensor.tolist() == [0.0, 1.0, 2.0]


def test_a_full_disk_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        closed = False

        def write(self, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    file = Full()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda buffering: file)
    tensor = torch.arange(9000.0)
    parking = Parking(CPU)
    with pytest.raises(WriteError, match="No space left"):
        parking.park([tensor])
    assert (parking.taken, file.closed) == (False, True)
    assert torch.equal(tensor, torch.arange(9000.0))


def test_dropped_memory_comes_anew_with_what_is_asked_for() -> None:
    weight, cache = torch.ones(SIZE), torch.ones(SIZE)
    before = resident()
    gone = [Dropped([weight], CPU), Dropped([cache], CPU)]
    assert before - resident() > 0.9 * 8 * SIZE
    gone[0].take_anew(0xFF)
    gone[1].take_anew(0)
    assert bool(weight.isnan().all())
    assert not cache.any()


def test_tensors_are_found_through_whatever_holds_them() -> None:
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    lone = torch.ones(1)
    found = {id(one) for one in tensors_within(optimizer, {"a": [(lone,)]}, None, "text", 3)}
    wanted = [lone, layer.weight, layer.bias, layer.weight.grad]
    wanted += [optimizer.state[layer.weight]["exp_avg"], optimizer.state[layer.bias]["exp_avg_sq"]]
    assert {id(one) for one in wanted} <= found
    shard = layer.weight.ds_tensor = torch.ones(4)  # as ZeRO-3 hangs it there
    assert id(shard) in {id(one) for one in tensors_within(optimizer)}
    around: list[object] = [lone]
    around.append(around)
    assert len(list(tensors_within(around))) == 1
    assert not list(tensors_within(deque([lone])))
