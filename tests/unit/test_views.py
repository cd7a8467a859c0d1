"""Safetensors read where they lie: what the library reads, and nothing that it refuses."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from learners.views import tensors_in

TYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32)
shapes = st.lists(st.integers(0, 4), max_size=3)
named = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "__metadata__"), st.tuples(shapes, st.sampled_from(TYPES))
)


def made(wanted: dict[str, tuple[list[int], torch.dtype]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(kind)
        for name, (shape, kind) in wanted.items()
    }


def alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )


@given(named, st.booleans())
def test_what_was_saved_is_read(wanted: Any, writable: bool) -> None:
    tensors = made(wanted)
    data = save(tensors)
    assert alike(tensors_in(bytearray(data) if writable else data), tensors)


def test_a_payload_that_can_be_written_to_is_not_copied() -> None:
    data = bytearray(save({"a": torch.zeros(4), "b": torch.arange(3)}))
    tensors = tensors_in(data)
    data[-4:] = torch.tensor([7.0]).numpy().tobytes()
    assert tensors["a"].tolist() == [0.0, 0.0, 0.0, 7.0]
    apart = tensors_in(bytes(data))
    data[-4:] = bytes(4)
    assert apart["a"].tolist() == [0.0, 0.0, 0.0, 7.0]


@settings(max_examples=300)
@given(named, st.data())
def test_damaged_bytes_are_refused_or_read_as_the_library_reads_them(
    wanted: Any, data: st.DataObject
) -> None:
    damaged = bytearray(save(made(wanted)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
        if not damaged:
            break
    try:
        found = tensors_in(bytes(damaged))
    except ValueError:
        return
    try:
        known = load(bytes(damaged))
    except SafetensorError:
        pytest.fail("the library refuses it")
    assert {name: value.numpy().tobytes() for name, value in found.items()} == {
        name: value.numpy().tobytes() for name, value in known.items()
    }


def written(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def place(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        (1 << 63).to_bytes(8, "little"),
        written(b"[" * 100_000),
        written(b"\xff\xff"),
        written([]),
        written({"a": place([1], 0, 4)}),  # its data is not there
        written({"a": place([1], 0, 4)}, b"12345"),
        written({"a": place([1], 1, 5)}, b"12345"),
        written({"a": place([2], 0, 4)}, b"1234"),
        written({"a": place([-1], 0, 4)}, b"1234"),
        written({"a": place([-1, -1], 0, 4)}, b"1234"),
        written({"a": place([0, 1 << 60], 0, 0)}),
        written({"a": place([0, 1 << 39, 1 << 39], 0, 0)}),
        written({"a": place([1], 0, 4, "PICKLE")}, b"1234"),
        written({"a": place([1], 0, 4), "b": place([1], 0, 4)}, b"1234"),
        written({"a": place([1], 0, 4), "b": place([1], 8, 12)}, b"123456789012"),
        written({"a": {"dtype": "F32"}}),
    ],
)  # fmt: skip
def test_what_is_no_safetensors_is_refused_with_a_reason(data: bytes) -> None:
    for payload in (data, bytearray(data)):
        with pytest.raises(ValueError, match=r"header|place|bytes|shape|dimension|array"):
            tensors_in(payload)
