import json

import numpy as np
import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import _core, random

SPECS = {
    "raw": {"name": "raw"},
    "delta-int8": {"name": "delta-int8", "keyframe_every": 5},
    "half-delta": {"name": "half-delta"},
    "lossless": {"name": "lossless", "keyframe_every": 5},
}


def bytes_of(record: torch.Tensor) -> memoryview:
    return record.contiguous().view(torch.uint8).numpy().data


def encode(spec, records, sizes=(), dtype="F32"):
    return _core.codec_encode(json.dumps(spec), dtype, list(sizes), [bytes_of(record) for record in records])


def decode(spec, encoded, step, like, sizes=(), dtype="F32"):
    chain = [step]
    while (base := encoded[chain[0]][1]) is not None:
        chain.insert(0, base)
    out = torch.empty_like(like)
    payloads = [encoded[index][0] for index in chain]
    _core.codec_decode(json.dumps(spec), dtype, list(sizes), payloads, [(len(chain) - 1, bytes_of(out))])
    return out


@pytest.fixture(scope="module")
def experts():
    """Weights after each of 20 epochs of plain SGD on real images, and the sizes of the tensors."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    records = []
    for epoch in range(21):
        records.append(torch.cat([value.detach().flatten() for value in network.parameters()]).clone())
        for batch in random.permutation(len(inputs), step=epoch, name="order").split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimiser.step()
    return records, [value.numel() for value in network.parameters()]


def relative_errors(records, decoded):
    return [
        float((decoded[step] - records[step]).norm() / (records[step] - records[step - 1]).norm())
        for step in range(1, len(records))
    ]


@pytest.mark.parametrize("keyframe_every", [5, 17, 1000])
def test_int8_keeps_real_experts_within_a_hundredth_of_an_epoch(experts, keyframe_every):
    records, sizes = experts
    spec = {"name": "delta-int8", "keyframe_every": keyframe_every}
    encoded, (largest, mean, count) = encode(spec, records, sizes)
    errors = relative_errors(records, [decode(spec, encoded, step, records[0], sizes) for step in range(21)])
    deltas = [error for error, (_, base) in zip(errors, encoded[1:], strict=True) if base is not None]
    assert max(errors) <= 0.01
    assert (largest, mean, count) == (
        pytest.approx(max(deltas), rel=1e-3),
        pytest.approx(np.mean(deltas), rel=1e-3),
        len(deltas),
    )


def test_an_int8_difference_to_the_start_would_lose_the_late_motion(experts):
    # Why the loop is closed over neighbours: the same eight bits spent on the distance from the start.
    records, _ = experts
    start = records[0]
    plain = []
    for record in records:
        blocks = nn.functional.pad(record - start, (0, -len(start) % 256)).reshape(-1, 256)
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        plain.append(start + ((blocks / scale).round() * scale).flatten()[: len(start)])
    assert relative_errors(records, plain)[-1] > 0.03


def test_lossless_shrinks_real_experts_and_keeps_every_bit(experts):
    records, sizes = experts
    encoded, (_, _, count) = encode(SPECS["lossless"], records, sizes)
    assert count == 0
    for step, record in enumerate(records):
        assert torch.equal(decode(SPECS["lossless"], encoded, step, record, sizes), record)
    deltas = [len(payload) for payload, base in encoded if base is not None]
    assert np.mean(deltas) < 0.8 * 4 * len(records[0])


@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_codec_stays_near_what_it_was_given(experts, name, dtype):
    records, sizes = experts
    records = [record.to(dtype) for record in records]
    tag = {torch.float32: "F32", torch.float64: "F64"}[dtype]
    encoded, _ = encode(SPECS[name], records, sizes, tag)
    decoded = [decode(SPECS[name], encoded, step, records[0], sizes, tag) for step in range(21)]
    assert max(relative_errors(records, decoded)) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_lossless_takes_any_dtype(dtype):
    tags = ["BF16", "F16", "F8_E4M3", "I64", "BOOL"]
    tag = tags[[torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool].index(dtype)]
    records = [(random.uniform(1, 333, step=step, name="any")[0] * 2).to(dtype) for step in range(8)]
    encoded, _ = encode(SPECS["lossless"], records, dtype=tag)
    for step, record in enumerate(records):
        back = decode(SPECS["lossless"], encoded, step, record, dtype=tag)
        assert torch.equal(back.view(torch.uint8), record.view(torch.uint8))


def test_damaged_payloads_are_reported():
    records = [torch.arange(300.0) + step for step in range(3)]
    for name in ("delta-int8", "half-delta", "lossless"):
        encoded, _ = encode(SPECS[name], records)
        broken = [(payload[:-1], base) for payload, base in encoded]
        with pytest.raises(dr.errors.StoreCorrupt, match="damaged at byte"):
            decode(SPECS[name], broken, 2, records[0])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: encode({"name": "zip"}, [torch.zeros(3)]), "codec"),
        (lambda: _core.codec_encode("{", "F32", [], []), "codec"),
        (lambda: encode({"name": "delta-int8"}, [torch.zeros(3)], dtype="F12"), "dtype"),
        (lambda: encode({"name": "delta-int8"}, [torch.zeros(4).half()], dtype="F16"), "dtype"),
        (lambda: encode({"name": "lossless", "keyframe_every": 0}, [torch.zeros(3)]), "keyframe_every"),
        (lambda: encode({"name": "half-delta"}, [torch.zeros(3)], sizes=[1]), "tensor_sizes"),
        (lambda: encode({"name": "raw"}, [torch.zeros(3), torch.zeros(2)]), "record"),
    ],
)
def test_what_a_codec_cannot_take_is_refused_by_name(call, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}"):
        call()
