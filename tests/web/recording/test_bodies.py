"""Bodies of requests: content encodings and limits."""

from __future__ import annotations

import gc
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from audit.settings import Settings
from tests.api import JSON, NDJSON, TASKS, fields, get, lines, send
from tests.conftest import Client, execute, task

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(
        pool_size=2,
        max_body_bytes=4 * 1024 * 1024,
        max_lines_per_request=3_000,
        max_tasks_per_request=2_000,
        max_task_bytes=100_000,
    )


def count_all(dsn: str) -> int:
    [(tasks,)] = execute(dsn, "SELECT count(*) FROM tasks")
    return int(tasks)


def encoded(coding: str) -> dict[str, str]:
    return {**NDJSON, "Content-Encoding": coding}


def flushed(coding_bits: int, *parts: bytes) -> bytes:
    """A stream that its client flushes after each part, and does not end."""
    packer = zlib.compressobj(wbits=coding_bits)
    return b"".join(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts)


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


TWO = lines(task(), task())
PACKED = gzip.compress(TWO)
BROKEN = {
    "gzip without its trailer": ("gzip", PACKED[:-8]),
    "gzip without half of its trailer": ("gzip", PACKED[:-4]),
    "gzip without its last byte": ("gzip", PACKED[:-1]),
    "gzip cut in its data": ("gzip", PACKED[: len(PACKED) // 2]),
    "gzip cut in its header": ("gzip", PACKED[:5]),
    "gzip cut between flushed lines": ("gzip", flushed(31, lines(task()), lines(task()))),
    "gzip with a wrong checksum": ("gzip", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:]),
    "gzip with a wrong size": ("gzip", PACKED[:-4] + b"\1\0\0\0"),
    "gzip with half a second member": ("gzip", PACKED + PACKED[: len(PACKED) // 2]),
    "gzip with a second member without its trailer": ("gzip", PACKED + PACKED[:-8]),
    "gzip with other data after its end": ("gzip", PACKED + b"and more"),
    "gzip with zeros after its end": ("gzip", PACKED + b"\0" * 512),
    "deflate without its checksum": ("deflate", zlib.compress(TWO)[:-4]),
    "deflate with a wrong checksum": ("deflate", zlib.compress(TWO)[:-1] + b"\0"),
    "deflate cut between flushed lines": ("deflate", flushed(15, lines(task()), lines(task()))),
    "deflate twice": ("deflate", zlib.compress(TWO) * 2),
    "raw deflate cut off": ("deflate", flushed(-15, lines(task()))),
    "no gzip": ("gzip", TWO),
    "deflate as gzip": ("gzip", zlib.compress(TWO)),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_an_incomplete_compressed_body_records_nothing(
    client: Client, dsn: str, case: str
) -> None:
    coding, body = BROKEN[case]
    before = count_all(dsn)

    status, problem = await send(client, body, encoded(coding))

    assert (400, "malformed") == (status, problem["type"].rpartition(":")[2]), problem
    assert before == count_all(dsn)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", lambda body: b"".join(gzip.compress(line) for line in body.splitlines(True))),
        ("gzip", lambda body: gzip.compress(body[:100]) + gzip.compress(body[100:])),
        ("gzip", lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b"")),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
    ids=["gzip", "capitals", "x-gzip", "a member for each line", "a member that ends in a line",
         "empty members", "deflate", "raw deflate", "identity"],
)  # fmt: skip
async def test_a_compressed_body_is_recorded(client: Client, coding: str, pack: Any) -> None:
    status, body = await send(client, pack(lines(task(), task())), encoded(coding))

    assert (201, 2) == (status, body["recorded"])


async def test_a_chunked_body_may_be_compressed(client: Client) -> None:
    sent = task()

    answer = await client.post(TASKS, data=lines(*[sent] * 100), headers=NDJSON, compress="gzip")

    assert answer.status == 201
    assert (await answer.json())["duplicates"] == 99


async def test_a_compressed_change_must_be_complete(client: Client) -> None:
    sent = task(status="pending")
    await send(client, lines(sent))
    packed = gzip.compress(b'{"status": "failed"}')
    headers = {**JSON, "Content-Encoding": "gzip"}

    url = f"{TASKS}/{sent['task_id']}"
    cut = await client.patch(url, data=packed[:-8], headers=headers)
    unchanged = await (await client.get(url)).json()
    whole = await client.patch(url, data=packed, headers=headers)

    assert (400, "pending") == (cut.status, unchanged["status"])
    assert (200, "failed") == (whole.status, (await whole.json())["status"])


@pytest.mark.parametrize("given", [("br",), ("zstd",), ("gzip, gzip",), ("gzip", "gzip"), ("",)])
async def test_an_unsupported_coding_is_refused_and_the_supported_ones_are_listed(
    client: Client, given: tuple[str, ...]
) -> None:
    headers = [*NDJSON.items(), *(("Content-Encoding", coding) for coding in given)]

    answer = await client.post(TASKS, data=PACKED, headers=headers)

    assert answer.status == (400 if given == ("",) else 415)
    if answer.status == 415:
        assert answer.headers["Accept-Encoding"] == "identity, gzip, deflate"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_expands_too_much_is_refused(client: Client, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress

    status, problem = await send(client, pack(b" " * 3_000_000), encoded(coding))

    assert (413, True) == (status, "max_expansion" in problem["detail"])


async def test_a_small_body_may_expand_to_a_megabyte(client: Client) -> None:
    body = (lines(task()) * 1_900 + b" " * 600_000)[:1_048_576]

    status, _ = await send(client, gzip.compress(body), encoded("gzip"))

    assert len(body) > 1_000_000 > 100 * len(gzip.compress(body))
    assert status == 201


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_a_body_over_its_limit_is_refused_compressed_or_not(
    client: Client, pack: Any
) -> None:
    noise = lines(*(task() for _ in range(1_900))) + b" " * 4_000_000
    coding = "gzip" if pack is gzip.compress else "identity"

    status, problem = await send(client, pack(noise), encoded(coding))

    assert (413, True) == (status, "max_body_bytes" in problem["detail"])


async def test_many_empty_members_are_refused(client: Client) -> None:
    body = gzip.compress(b"") * 20_000

    assert (await send(client, body, encoded("gzip")))[0] == 413


@pytest.mark.parametrize(
    ("body", "setting"),
    [
        (b"\n" * 3_000, "max_lines_per_request"),
        (b'{"request_text": "a"}\n' * 2_001, "max_tasks_per_request"),
    ],
    ids=["lines", "tasks"],
)
async def test_a_body_with_too_many_parts_is_refused(
    client: Client, dsn: str, body: bytes, setting: str
) -> None:
    before = count_all(dsn)

    status, problem = await send(client, body)

    assert (422, True) == (status, setting in problem["detail"])
    assert before == count_all(dsn)


@pytest.mark.parametrize("headers", [NDJSON, JSON])
@pytest.mark.parametrize("large", [100_001, 150_000, 3_000_000])
async def test_a_task_over_its_limit_is_refused(
    client: Client, headers: dict[str, str], large: int
) -> None:
    one = lines(task(error_message="")).strip()
    one = one.replace(b'"error_message": ""', b'"error_message": "%b"')
    fits, too_large = (one % (b"a" * (size - len(one) + 2)) for size in (100_000, large))

    assert (await send(client, fits, headers))[0] == 201
    status, problem = await send(client, too_large, headers)

    assert 422 == status
    assert f"has {large} bytes; the limit is 100000 bytes (max_task_bytes)" in problem["detail"]


async def test_an_element_over_the_limit_of_a_task_is_named(client: Client) -> None:
    body = json.dumps([task(), task(error_message="a" * 200_000), task()]).encode()

    status, problem = await send(client, body, JSON)

    assert (422, ["1"]) == (status, fields(problem))
    assert "max_task_bytes" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "headers", "total"),
    [
        (b'{"status": 1}\n' * 2_500, NDJSON, 5_000),
        (b"[" + b",".join([b"{}"] * 1_000) + b"]", JSON, 1_000),
        (json.dumps({f"m{n}": n for n in range(5_000)}).encode(), JSON, 5_001),
        (json.dumps({"request_text": "a", "x" * 90_000: 1}).encode(), JSON, 1),
        (json.dumps({"request_text": "a", "services_touched": [1] * 9_000}).encode(), JSON, 1),
    ],
    ids=["lines", "array", "unknown members", "a long name", "services"],
)
async def test_errors_are_counted_and_the_first_are_listed(
    client: Client, body: bytes, headers: dict[str, str], total: int
) -> None:
    status, problem = await send(client, body, headers)

    assert (422, min(total, 20)) == (status, len(problem["errors"]))
    assert total == 1 or f"(and {total - 1} more; the first 20 are listed)" in problem["detail"]
    assert len(json.dumps(problem)) < 5_000


async def test_large_bodies_are_recorded_in_the_order_sent(client: Client) -> None:
    sent = [task(request_text=f"{n} Größe 🚀", outcome={"n": "x" * 40_000}) for n in range(90)]

    for given, body, headers in (
        (sent[:45], lines(*sent[:45]), NDJSON),
        (sent[45:], json.dumps(sent[45:], ensure_ascii=False, indent=1).encode(), JSON),
    ):
        status, result = await send(client, body, headers)
        assert (201, 45) == (status, result["recorded"])
        assert [each["task_id"] for each in given] == result["task_ids"]
    assert sent[80]["request_text"] == (await get(client, sent[80]["task_id"]))["request_text"]


async def test_times_too_far_ahead_are_counted_and_the_first_are_listed(client: Client) -> None:
    sent = lines(*(task(created_at="2999-01-01T00:00:00Z") for _ in range(30)))

    status, problem = await send(client, sent)

    assert (422, 20) == (status, len(problem["errors"]))
    assert "(and 29 more; the first 20 are listed)" in problem["detail"]


@pytest.mark.parametrize("last", [b'{"status": "lost"}]', b'{"status": ]'])
async def test_memory_of_a_refused_body_is_free_at_once(client: Client, last: bytes) -> None:
    unknown = json.dumps({"intent": "x" * 50_000}).encode()
    body = b"[" + b", ".join([*[unknown] * 40, last])
    await send(client, body, JSON)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            status, _ = await send(client, body, JSON)
            assert status in (400, 422)
        held, _ = tracemalloc.get_traced_memory()
        assert held < 2 * len(body)
    finally:
        tracemalloc.stop()
        gc.enable()
