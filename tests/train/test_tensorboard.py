from __future__ import annotations

import struct
from pathlib import Path

import pytest

from camelid.train.tensorboard import EventFile, crc32c


def records(path: Path) -> list[bytes]:
    """The records of an event file; every checksum is held against its bytes."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for part, stored in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
            rotated = (struct.unpack("<I", stored)[0] - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == crc32c(part)
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)],
)
def test_the_checksum_is_that_of_the_rfcs_examples(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_a_step_is_an_event_with_its_scalars(tmp_path: Path) -> None:
    file = EventFile(tmp_path, first_step=300)
    file.append(301, {"loss": 2.5})
    file.close()
    (path,) = tmp_path.iterdir()
    version, start, step = records(path)
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    assert start[9:] == b"\x10\xac\x02\x3a\x02\x08\x01"
    assert step[9:] == b"\x10\xad\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 2.5)


def test_a_run_writes_what_its_metrics_say(make_trainer) -> None:
    trainer = make_trainer(steps=4)
    trainer.run()
    (path,) = (trainer.run_folder / "tensorboard").iterdir()
    events = records(path)[2:]
    assert len(events) == 4
    assert all(b"bits_per_byte" in event and b"learning_rate" in event for event in events)
