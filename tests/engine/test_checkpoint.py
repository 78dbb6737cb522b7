"""Checkpoints are complete or absent, and loading one runs no code."""

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rpe_d2.engine.checkpoint import ModelCheckpointer, UnreadableCheckpoint
from rpe_d2.engine.hooks import averaged_copy
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.safe_loading import load_arrays
from tests.conftest import ROOT
from tests.helpers.runs import Iterations, Payload


def model(value=0.0):
    linear = nn.Linear(4, 3)
    nn.init.constant_(linear.weight, value)
    return linear


def saved(folder, *values):
    """Saves checkpoints of models filled with the values, as iterations 0, 1, …"""
    for iteration, value in enumerate(values):
        trainer = Iterations()
        trainer.iteration = iteration
        checkpointer = ModelCheckpointer(model(value), str(folder), complete=False, trainer=trainer)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def resumed(folder):
    """The value of the model, and the iteration, with which a resumed training starts."""
    trainer, linear = Iterations(), model()
    checkpointer = ModelCheckpointer(linear, str(folder), complete=False, trainer=trainer)
    checkpointer.resume_or_load("", resume=True)
    return float(linear.weight[0, 0]), trainer.iteration


def test_resuming_takes_the_last_checkpoint(tmp_path):
    saved(tmp_path, 1.0, 2.0, 3.0)
    assert resumed(tmp_path) == (3.0, 2)
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "gone", "bit flip"])
def test_an_unreadable_checkpoint_is_named_and_the_previous_one_is_taken(damage, tmp_path, caplog):
    saved(tmp_path, 1.0, 2.0, 3.0)
    last = tmp_path / "model_0000002.pth"
    content = last.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}
    flipped = bytearray(content)
    flipped[content.index(np.float32(3.0).tobytes() * 2)] ^= 1  # torch alone does not notice
    damaged["bit flip"] = bytes(flipped)
    last.unlink() if damage == "gone" else last.write_bytes(damaged[damage])
    assert resumed(tmp_path) == (2.0, 1)
    assert "model_0000002.pth" in caplog.text and "trying the previous one" in caplog.text


def test_a_checksum_is_that_of_sha256sum_and_may_be_missing(tmp_path):
    saved(tmp_path, 1.0)
    path = tmp_path / "model_0000000.pth"
    checksum = tmp_path / "model_0000000.pth.sha256"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert checksum.read_text() == f"{digest}  model_0000000.pth\n"
    checksum.write_text(f"{digest[::-1]}  model_0000000.pth\n")
    with pytest.raises(ValueError, match="model_0000000.pth: the content does not match"):
        ModelCheckpointer(model(), complete=True).load(str(path))
    checksum.unlink()
    assert resumed(tmp_path) == (1.0, 0)
    os.mkfifo(checksum)  # is not waited for
    assert resumed(tmp_path) == (1.0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    state = model(1.0).state_dict()
    state["weight"][1, 2] = value
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights.pth: 1 of the 12 numbers of weight are infinite"):
        ModelCheckpointer(model(), complete=True).load(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "weights, words",
    [
        ([1], "no tensors under 'model'"),
        ({}, "no tensors under 'model'"),
        ({"weight": "text"}, "'weight' under 'model' is of type str; allowed: dense tensors"),
        ({"weight": torch.zeros(3, 4, device="meta")}, "allowed: dense tensors"),
        ({"weight": torch.zeros(3, 4).to_sparse()}, "allowed: dense tensors"),
        ({1: torch.zeros(1)}, "1 under 'model' is of type Tensor; allowed: dense tensors, by name"),
        ({"weight": torch.ones(3, 4).long()}, "weight is of torch.int64; allowed: floating point"),
    ],
)
def test_weights_that_are_no_tensors_by_name_are_refused(weights, words, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=f"weights {path}: .*{re.escape(words)}"):
        ModelCheckpointer(model(), complete=True).load(str(path))


def test_averaged_weights_that_are_no_tensors_are_refused(tmp_path):
    torch.save({"model": model().state_dict(), "ema": 5}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="no tensors under 'ema'"):
        ModelCheckpointer(model(), complete=True).load(str(tmp_path / "weights.pth"))


def test_safetensors_of_16_bits(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = {name: value.half() for name, value in model(0.1).state_dict().items()}
    save_file(weights, path)
    other = model()
    ModelCheckpointer(other, complete=True).load(str(path))
    assert other.weight.dtype == torch.float32
    assert torch.equal(other.weight, weights["weight"].float())
    with pytest.raises(ValueError, match="do not belong to this model"):
        ModelCheckpointer(nn.Linear(5, 3), complete=True).load(str(path))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"\xff" * 40, b""):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableCheckpoint, match="weights.safetensors: not a checkpoint"):
            ModelCheckpointer(other, complete=True).load(str(path))


def test_a_checksum_that_is_a_pipe_is_not_waited_for(tmp_path):
    expected = model(1.0).state_dict()
    torch.save({"model": expected}, tmp_path / "weights.pth")
    os.mkfifo(tmp_path / "weights.pth.sha256")
    loaded = model()
    ModelCheckpointer(loaded, complete=True).load(str(tmp_path / "weights.pth"))
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_every_truncation_is_noticed(tmp_path):
    saved(tmp_path, 1.0, 2.0)
    last = tmp_path / "model_0000001.pth"
    content = last.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        last.write_bytes(content[:length])
        assert resumed(tmp_path) == (1.0, 0)


def test_it_is_an_error_if_no_checkpoint_can_be_read(tmp_path):
    saved(tmp_path, 1.0, 2.0)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="no checkpoint can be read: .*0000001.pth, .*0000000.pth"):
        resumed(tmp_path)


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), replacing_file(path) as file:
        file.write(b"after")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, signal, sys
from tests.helpers.runs import save_large_checkpoint
# Writing more than the limit then fails, as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_large_checkpoint(sys.argv[1])
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    saved(tmp_path, 1.0, 2.0)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    message = r"model_0000009\.pth could not be written \(File too large\); the last good one: .*"
    assert re.search(message + r"0000001\.pth", line)
    assert resumed(tmp_path) == (2.0, 1)
    names = sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".sha256")
    assert names == ["last_checkpoint", "model_0000000.pth", "model_0000001.pth"]


def test_the_best_model_is_not_the_last(tmp_path):
    saved(tmp_path, 1.0)
    ModelCheckpointer(model(5.0), str(tmp_path), complete=False).save("model_best", is_last=False)
    assert resumed(tmp_path) == (1.0, 0)


def test_inference_loads_averaged_weights_and_resuming_the_trained_ones(tmp_path):
    trained, trainer = model(2.0), Iterations()
    averaged = averaged_copy(model(1.0), 0.9)
    ModelCheckpointer(
        trained, str(tmp_path), complete=False, trainer=trainer, ema=averaged
    ).save("model_0000000", iteration=0)  # fmt: skip
    path = str(tmp_path / "model_0000000.pth")
    for complete in (True, False):
        linear = model()
        ModelCheckpointer(linear, complete=complete).load(path)
        assert float(linear.weight[0, 0]) == 1.0
    assert resumed(tmp_path)[0] == 2.0
    other, copy = model(), averaged_copy(model(), 0.9)
    ModelCheckpointer(
        other, str(tmp_path), complete=False, trainer=trainer, ema=copy
    ).resume_or_load("")  # fmt: skip
    assert float(other.weight[0, 0]) == 2.0 and float(copy.module.weight[0, 0]) == 1.0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_types_are_read_as_pickle_reads_them(protocol, tmp_path):
    content = {
        "__author__": "someone",
        "model": OrderedDict(
            weight=np.arange(6, dtype=np.float32).reshape(2, 3),
            flags=np.array([True, False]),
            scalar=np.float64(2.5),
            bytes=b"ab\xff",
            nothing=None,
            numbers=[1, 2.5, (3,), {4}, frozenset([5])],
        ),
    }
    if protocol < 4:
        content["model"]["numbers"] = [1, 2.5, (3,)]  # older pickles build sets by calling set
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with open(path, "rb") as file:
        read = load_arrays(file)
    assert type(read["model"]) is OrderedDict
    np.testing.assert_array_equal(read["model"].pop("weight"), content["model"].pop("weight"))
    np.testing.assert_array_equal(read["model"].pop("flags"), content["model"].pop("flags"))
    assert read == content


def test_model_zoo_files_load(tmp_path):
    weights = {"weight": np.full((3, 4), 7, np.float32), "bias": np.zeros(3, np.float32)}
    linear = model()
    zoo = tmp_path / "zoo.pkl"
    zoo.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}, protocol=2))
    ModelCheckpointer(linear, complete=True).load(str(zoo))
    assert float(linear.weight[0, 0]) == 7
    caffe = tmp_path / "caffe.pkl"
    blobs = {"fc_w": weights["weight"], "fc_w_momentum": weights["weight"]}
    caffe.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    content = ModelCheckpointer(linear, complete=False)._load_file(str(caffe))
    assert list(content["model"]) == ["fc_w"] and content["matching_heuristics"]


@pytest.mark.parametrize("place", ["alone", "in a dict", "in an array"])
@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
def test_a_payload_in_weights_does_not_run(suffix, place, tmp_path):
    trap = tmp_path / "trap"
    payload = Payload(trap)
    content = {
        "alone": payload,
        "in a dict": {"model": {"weight": payload}, "__author__": "me"},
        "in an array": {"model": {"weight": np.array([payload], object)}, "__author__": "me"},
    }[place]
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UnreadableCheckpoint, match=f"weights{suffix}: not a checkpoint"):
        ModelCheckpointer(model(), complete=False).load(str(path))
    assert not trap.exists()
    with open(path, "rb") as file:  # an unsafe loader does run the payload
        torch.load(path, weights_only=False) if suffix != ".pkl" else pickle.load(file)
    assert trap.exists()


def test_pickles_that_ask_for_functions_are_refused():
    for module, name in (
        ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("posix", "system"),
        ("numpy", "load"), ("numpy.core.multiarray", "fromfile"), ("numpy", "ndarray.tofile"),
        ("torch", "load"), ("subprocess", "Popen"),
    ):  # fmt: skip
        code = f"c{module}\n{name}\n.".encode()
        with pytest.raises(pickle.UnpicklingError, match=f"asks for {module}.{re.escape(name)}"):
            load_arrays(io.BytesIO(code))


def reduced(function: bytes, arguments: bytes) -> bytes:
    """A pickle that calls a function."""
    return b"\x80\x02c" + function + arguments + b"R."


@pytest.mark.parametrize(
    "code, message",
    [
        # numpy.ndarray((1,), "O", b"A" * 8), an array of pointers that the attacker chooses
        (reduced(b"numpy\nndarray\n", b"(K\x01\x85X\x01\x00\x00\x00OC\x08AAAAAAAAt"), "damaged"),
        (reduced(b"numpy\ndtype\n", b"X\x02\x00\x00\x00O8\x85"), "type O8"),
        (reduced(b"numpy\ndtype\n", b"X\x05\x00\x00\x00i4,O8\x85"), "type i4,O8"),
        (
            reduced(b"_codecs\nencode\n", b"X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86"),
            "encoding zip",
        ),
        (
            reduced(
                b"numpy.core.multiarray\n_reconstruct\n",
                b"ccollections\nOrderedDict\nK\x00\x85C\x01b\x87",
            ),
            "kind of array",
        ),
    ],
)  # fmt: skip
def test_arrays_of_pointers_cannot_be_made(code, message):
    with pytest.raises(pickle.UnpicklingError, match=message):
        load_arrays(io.BytesIO(code))


def test_an_array_larger_than_its_data_is_refused():
    whole = pickle.dumps(np.arange(6, dtype=np.int32).reshape(2, 3), 2)
    assert load_arrays(io.BytesIO(whole)).tolist() == [[0, 1, 2], [3, 4, 5]]
    state = whole.replace(b"K\x02K\x03\x86", b"K\x63K\x63\x86")  # shape (99, 99)
    assert state != whole
    with pytest.raises(pickle.UnpicklingError, match="damaged"):
        load_arrays(io.BytesIO(state))


def test_the_previous_checkpoint_is_the_one_of_the_latest_iteration(tmp_path):
    """The run was extended beyond model_final. Copying the folder has changed all times."""
    saved(tmp_path, 1.0, 2.0, 3.0)
    (tmp_path / "model_0000001.pth").rename(tmp_path / "model_final.pth")
    for time, name in enumerate(("model_0000002", "model_final", "model_0000000")):
        os.utime(tmp_path / f"{name}.pth", (time, time))
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    assert resumed(tmp_path) == (3.0, 2)
    (tmp_path / "model_0000002.pth").write_bytes(b"damaged")
    assert resumed(tmp_path) == (2.0, 1)


def test_a_tag_of_the_last_checkpoint_that_is_no_text_is_ignored(tmp_path, caplog):
    saved(tmp_path, 1.0, 2.0)
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x00\x81")
    assert resumed(tmp_path) == (2.0, 1)
    assert "last_checkpoint is not a text file" in caplog.text


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    saved(tmp_path, 1.0)
    leftover = tmp_path / "model_0000001.pth.123.tmp"
    leftover.write_bytes(b"half")
    resumed(tmp_path)
    assert not leftover.exists() and (tmp_path / "model_0000000.pth").exists()
