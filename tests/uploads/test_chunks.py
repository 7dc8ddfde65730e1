"""Chunks in every order, on both kinds of stores, at one server and at two, across crashes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.uploads import chunks
from bridge.uploads.blobs import Blob, BlobExistsError, BlobStore, Readable
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Status
from bridge.uploads.sweeper import LEFTOVER_SECONDS
from bridge.uploads.urls import open_blobs
from tests.uploads.fakes import KEEP, Intake, Memory, at_desk, sha256, stored
from tests.wire import LIMIT, eventually

ME = "key-me"
DATA = [os.urandom(size) for size in (1_000, 0, 3, 70_000, 1_000, 5)]
FILE = b"".join(DATA)


async def send(
    desk: UploadDesk,
    number: int,
    data: bytes | None = None,
    *,
    last: int = len(DATA) - 1,
    name: str = "up",
    owner: str = ME,
    first: int = 0,
    **fields: str,
) -> Status:
    chunk = Memory(DATA[number - first] if data is None else data)
    return await desk.chunked.add(owner, name, number, chunk, is_last=number == last, fields=fields)


async def assert_arrived(
    status: Status, blobs: BlobStore, intake: Intake, file: bytes = FILE, *, tidy: bool = True
) -> None:
    assert status.state == "complete"
    assert status.size == len(file)
    assert status.sha256 == sha256(file)
    assert status.job is not None
    whole = intake.jobs[status.job]
    assert (whole.owner, whole.size, whole.sha256) == (ME, len(file), sha256(file))
    assert await stored(blobs, whole.blob) == file
    assert intake.checked[-1] == file
    if tidy:
        assert await blobs.folders("uploads") == []


def refuses(code: str) -> pytest.RaisesExc[BridgeError]:
    return pytest.RaisesExc(BridgeError, check=lambda exc: exc.code == code)


async def test_in_order(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    for number in range(len(DATA) - 1):
        status = await send(desk, number)
        assert (status.state, status.received, status.missing) == ("open", number + 1, ())
    await assert_arrived(await send(desk, len(DATA) - 1), blobs, intake)
    assert len(intake.jobs) == 1


@pytest.mark.parametrize("seed", range(12))
async def test_in_any_order_each_several_times(desk: UploadDesk, blobs: BlobStore, intake: Intake, seed: int) -> None:
    rng = random.Random(seed)
    order = [number for number in range(len(DATA)) for _ in range(rng.randint(1, 3))]
    rng.shuffle(order)
    status = None
    for at, number in enumerate(order):
        status = await send(desk, number)
        here = set(order[: at + 1])
        assert (status.state == "complete") == (len(here) == len(DATA))
        if status.state == "open":
            highest = len(DATA) - 1 if len(DATA) - 1 in here else max(here)
            assert status.missing == tuple(sorted(set(range(highest + 1)) - here))
            assert status.size == sum(len(DATA[n]) for n in here)
    assert status is not None
    await assert_arrived(status, blobs, intake)
    assert len(intake.jobs) == intake.taken == 1


async def test_what_is_missing_is_named(desk: UploadDesk) -> None:
    for number in (0, 1, 2, 3, 4, 5, 6, 8, 10):
        status = await send(desk, number, b"x", last=10)
    assert (status.missing, status.missing_count, status.last) == ((7, 9), 2, 10)
    status = await send(desk, 9, b"x", last=10)
    assert status.missing == (7,)
    assert (await send(desk, 7, b"x", last=10)).state == "complete"


async def test_many_missing_are_counted(desk: UploadDesk) -> None:
    status = await send(desk, 19_999, b"x", last=19_999)
    assert status.missing == tuple(range(100))
    assert status.missing_count == 19_999
    with refuses("bad_request"):
        await send(desk, 20_000, b"x")


async def test_all_at_once(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    order = list(range(len(DATA))) * 3
    random.Random(1).shuffle(order)
    statuses = await asyncio.gather(*(send(desk, number) for number in order))
    [done] = {status.job for status in statuses if status.state == "complete"}
    assert done is not None
    await assert_arrived(await desk.chunked.status(ME, "up"), blobs, intake)
    assert intake.taken == 1


async def test_another_chunk_of_the_same_number(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    await send(desk, 0)
    for other in (b"", DATA[0][:-1], DATA[0][:-1] + bytes([DATA[0][-1] ^ 1])):
        with refuses("upload_conflict"):
            await send(desk, 0, other)
    for number in range(1, len(DATA)):
        status = await send(desk, number)
    await assert_arrived(status, blobs, intake)
    with refuses("upload_conflict"):
        await send(desk, 3, b"other")
    with refuses("upload_conflict"):
        await send(desk, len(DATA), b"more")
    assert (await send(desk, 3)).job == status.job


async def test_ends_that_contradict(desk: UploadDesk) -> None:
    await send(desk, 3, b"x", last=3)
    with refuses("upload_conflict"):
        await send(desk, 2, b"x", last=2)
    with refuses("upload_conflict"):
        await send(desk, 4, b"x", last=9)
    await send(desk, 5, b"x", last=9, name="other")
    with refuses("upload_conflict"):
        await send(desk, 4, b"x", last=4, name="other")


class Slow(Memory):
    """Is read when the test says so."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.begun, self.go = threading.Event(), threading.Event()
        seek = self.file.seek

        def held(offset: int, whence: int = 0) -> int:
            self.begun.set()
            assert self.go.wait(LIMIT)
            return seek(offset, whence)

        self.file.seek = held  # type: ignore[method-assign]


async def test_a_chunk_behind_the_last_one_counts_for_none_before_it(desk: UploadDesk, intake: Intake) -> None:
    """It was on its way when the last one came: neither could know of the other."""
    for number in range(4):
        await send(desk, number, b"x")
    behind = Slow(b"x")
    coming = asyncio.create_task(desk.chunked.add(ME, "up", 6, behind, is_last=False, fields={}))
    assert await asyncio.to_thread(behind.begun.wait, LIMIT)
    await send(desk, 5, b"x", last=5)
    behind.go.set()
    status = await coming
    assert (status.state, status.missing, status.last) == ("open", (4,), 5)
    with refuses("upload_conflict"):
        await send(desk, 4, b"x", last=5)
    assert intake.jobs == {}


async def test_whoever_counts_from_one(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    head = b"RIFF\0\0\0\0WAVEfmt "
    for number in (1, 2, 3):
        status = await send(desk, number, head if number == 1 else b"x", last=3, first=1)
    assert status.state == "complete"
    for number in (1, 2, 3):
        status = await send(desk, number, b"x", last=3, name="said", first_seq="1")
    await assert_arrived(status, blobs, intake, b"xxx")
    for number in (1, 2, 3):
        status = await send(desk, number, b"x", last=3, name="zero")
    assert (status.state, status.missing) == ("open", (0,))
    assert (await send(desk, 0, b"x", last=3, name="zero")).state == "complete"


async def test_from_zero_although_it_is_said(desk: UploadDesk) -> None:
    head = b"fLaC\0\0\0\x22"
    for number in (1, 2, 3):
        status = await send(desk, number, head, last=3, first_seq="0")
    assert status.missing == (0,)


async def test_an_upload_is_its_owners(desk: UploadDesk) -> None:
    await send(desk, 0, b"mine")
    await send(desk, 0, b"theirs", owner="key-other")
    assert (await desk.chunked.status(ME, "up")).size == 4
    assert (await desk.chunked.status("key-other", "up")).size == 6
    with refuses("unknown_upload"):
        await desk.chunked.status("key-third", "up")
    await desk.drop("chunks", ME, "up")
    assert (await desk.chunked.status("key-other", "up")).size == 6


async def test_options_of_all_chunks_count(desk: UploadDesk, intake: Intake) -> None:
    await send(desk, 1, b"x", last=1, language="de-DE")
    with refuses("upload_conflict"):
        await send(desk, 0, b"x", last=1, language="fr-FR")
    with refuses("bad_request"):
        await send(desk, 0, b"x", last=1, name="bad", language="bad")
    status = await send(desk, 0, b"x", last=1, filename="talk.wav", language="de-DE")
    assert status.job is not None
    whole = intake.jobs[status.job]
    assert whole.fields == {"language": "de-DE", "filename": "talk.wav"}
    assert whole.name == "talk.wav"


async def test_too_much_is_refused_before_it_is_kept(blobs: BlobStore, intake: Intake) -> None:
    async with at_desk(blobs, intake, max_bytes=100) as desk:
        await send(desk, 0, b"x" * 60)
        results = await asyncio.gather(*(send(desk, n, b"x" * 30) for n in (1, 2, 3)), return_exceptions=True)
        assert [getattr(result, "code", None) for result in results].count("too_large") == 2
        assert (await desk.chunked.status(ME, "up")).size == 90


async def test_how_many_may_be_open(blobs: BlobStore, intake: Intake) -> None:
    async with at_desk(blobs, intake, max_uploads=5, owner_uploads=3) as desk:
        mine = await asyncio.gather(*(send(desk, 0, b"x", name=f"up-{n}") for n in range(20)), return_exceptions=True)
        assert [getattr(result, "code", None) for result in mine].count("quota_exceeded") == 17
        others = await asyncio.gather(
            *(send(desk, 0, b"x", owner=f"key-{n}") for n in range(20)), return_exceptions=True
        )
        codes = [getattr(result, "code", None) for result in others]
        assert codes.count("at_capacity") == 18
        assert all(refused.retry_after for refused in (*mine, *others) if isinstance(refused, BridgeError))
        assert len(await blobs.folders("uploads")) == 5
        begun = next(f"up-{n}" for n in range(20) if isinstance(mine[n], Status))
        assert (await send(desk, 1, b"x", name=begun)).received == 2, "what is open goes on"
        await desk.drop("chunks", ME, begun)
        await send(desk, 0, b"x", name="new")


async def test_no_audio_is_refused_and_stays_so(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    await send(desk, 0, b"BAD")
    with refuses("undecodable_audio"):
        await send(desk, 1, b"more", last=1)
    with refuses("undecodable_audio"):
        await send(desk, 1, b"more", last=1)
    status = await desk.chunked.status(ME, "up")
    assert (status.state, status.code, status.message) == ("refused", "undecodable_audio", "this is no audio")
    assert intake.jobs == {}
    assert await blobs.entries("uploads") == await blobs.entries("files") == []
    await desk.drop("chunks", ME, "up")
    await send(desk, 0, b"good", last=0)


async def test_what_only_keeps_it_for_now_loses_nothing(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    intake.fault = BridgeError("at_capacity")
    await send(desk, 0, b"some")
    with refuses("at_capacity"):
        await send(desk, 1, b"thing", last=1)
    assert (await desk.chunked.status(ME, "up")).state == "open"
    intake.fault = None
    await assert_arrived(await send(desk, 1, b"thing", last=1), blobs, intake, b"something")


async def test_a_client_that_does_not_wait(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    intake.gate.clear()
    sending = asyncio.create_task(send(desk, 0, b"all", last=0))
    async with asyncio.timeout(LIMIT):
        while not intake.checked:
            await asyncio.sleep(0.01)
    with refuses("at_capacity"):
        await desk.drop("chunks", ME, "up")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    intake.gate.set()
    await eventually(lambda: bool(intake.jobs))  # without anybody's asking for it
    async with asyncio.timeout(LIMIT):  # what came of it is written down after that, and the pieces go
        while (await desk.chunked.status(ME, "up")).state == "open" or await blobs.folders("uploads"):
            await asyncio.sleep(0.01)
    await assert_arrived(await desk.chunked.status(ME, "up"), blobs, intake, b"all")
    assert intake.taken == 1


async def test_giving_up(desk: UploadDesk, blobs: BlobStore) -> None:
    await send(desk, 0)
    await send(desk, 3)
    await desk.drop("chunks", ME, "up")
    assert await blobs.entries("uploads") == []
    with refuses("unknown_upload"):
        await desk.chunked.status(ME, "up")
    with refuses("unknown_upload"):
        await desk.drop("chunks", ME, "up")
    status = await send(desk, 3, b"another file", last=9)
    assert status.received == 1


async def test_the_same_name_after_the_end(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    first = await send(desk, 0, b"first", last=0)
    await desk.drop("chunks", ME, "up")
    second = await send(desk, 0, b"second", last=0)
    assert first.job != second.job
    assert {whole.sha256 for whole in intake.jobs.values()} == {sha256(b"first"), sha256(b"second")}


async def test_without_a_job(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    with refuses("unknown_upload"):
        await desk.completed(ME, "up")
    await send(desk, 0, b"all ", job="false")
    with refuses("upload_incomplete"):
        await desk.completed(ME, "up")
    status = await send(desk, 1, b"of it", last=1)
    assert (status.state, status.job, intake.jobs) == ("complete", None, {})
    whole = await desk.completed(ME, "up")
    assert (whole.size, whole.sha256) == (9, sha256(b"all of it"))
    assert await stored(blobs, whole.blob) == b"all of it"
    assert (await desk.completed(ME, "up")).job_id == whole.job_id
    with refuses("unknown_upload"):
        await desk.completed("key-other", "up")
    await desk.drop("chunks", ME, "up")
    assert await blobs.entries("files") == []


async def test_no_job_is_made_of_a_file_that_is_about_to_go(desk: UploadDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    await send(desk, 0, b"all", last=0, job="false")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + KEEP - 120)
    await desk.completed(ME, "up")
    monkeypatch.setattr(time, "time", lambda: now + KEEP - 30)
    with refuses("unknown_upload"):
        await desk.completed(ME, "up")


async def test_a_file_whose_job_is_done_before_it_is_looked_at_here(
    desk: UploadDesk, blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server has handed it on; a worker deletes it when it has done with it."""
    fetch = blobs.fetch

    @contextlib.asynccontextmanager
    async def late(name: str) -> AsyncIterator[Path]:
        await blobs.delete(name)
        async with fetch(name) as path:
            yield path

    monkeypatch.setattr(blobs, "fetch", late)
    with refuses("store_unavailable"):  # that server has not said so yet
        await send(desk, 0, b"all", last=0)
    monkeypatch.undo()
    await assert_arrived(await send(desk, 0, b"all", last=0), blobs, intake, b"all")


@pytest.mark.parametrize("seed", range(8))
async def test_two_servers(blobs: BlobStore, intake: Intake, seed: int) -> None:
    """Any chunk may come to any server, at the same time: one job, whoever sees that it is whole."""
    rng = random.Random(seed)
    order = [*range(len(DATA)), *rng.choices(range(len(DATA)), k=4)]
    rng.shuffle(order)
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        at_once = seed % 2
        if at_once:
            await asyncio.gather(*(send(rng.choice((one, two)), number) for number in order))
        else:
            for number in order:
                await send(rng.choice((one, two)), number)
        for desk in (one, two):
            await assert_arrived(await desk.chunked.status(ME, "up"), blobs, intake)
        assert len(intake.jobs) == 1


async def test_the_server_with_the_last_chunk_to_come_knows_it(blobs: BlobStore, intake: Intake) -> None:
    """It had chunks before another one heard which is the last."""
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        await send(one, 0, b"a", last=2)
        await send(two, 2, b"c", last=2)
        await assert_arrived(await send(one, 1, b"b", last=2), blobs, intake, b"abc")


async def test_a_chunk_that_is_written_while_its_upload_is_deleted(
    desk: UploadDesk, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first of a new upload of that name."""
    await send(desk, 0)
    original = blobs.put

    async def put(name: str, file: Readable, *, new: bool = False) -> Blob:
        monkeypatch.setattr(blobs, "put", original)
        await desk.drop("chunks", ME, "up")
        return await original(name, file, new=new)

    monkeypatch.setattr(blobs, "put", put)
    status = await send(desk, 1)
    assert (status.received, status.missing) == (1, (0,))
    assert (await desk.chunked.status(ME, "up")).received == 1


async def test_what_is_looked_at_while_another_server_clears_it(
    blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is still listed, and gone when it is read."""
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        await send(one, 0, b"a", last=2)
        await send(one, 2, b"c", last=2)
        original = blobs.read

        async def read(name: str, *limit: int) -> bytes:
            if name.endswith("/last"):
                monkeypatch.setattr(blobs, "read", original)
                await send(two, 1, b"b", last=2)
            return await original(name, *limit)

        monkeypatch.setattr(blobs, "read", read)
        await assert_arrived(await one.chunked.status(ME, "up"), blobs, intake, b"abc")
    assert blobs.read == original


async def test_another_server_says_first_which_chunk_is_the_last_and_is_done(
    blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        await send(one, 0, b"a")
        original = blobs.put

        async def put(name: str, file: Readable, *, new: bool = False) -> Blob:
            if name.endswith("/last"):
                monkeypatch.setattr(blobs, "put", original)
                await send(two, 1, b"b", last=1)
                raise BlobExistsError(name)
            return await original(name, file, new=new)

        monkeypatch.setattr(blobs, "put", put)
        await assert_arrived(await send(one, 1, b"b", last=1), blobs, intake, b"ab")
    assert blobs.put == original


async def test_two_servers_one_of_which_deletes(blobs: BlobStore, intake: Intake) -> None:
    async with at_desk(blobs, intake) as one, at_desk(blobs, intake) as two:
        await send(one, 0)
        await send(two, 1)
        await two.drop("chunks", ME, "up")
        with refuses("unknown_upload"):
            await one.chunked.status(ME, "up")
        status = await send(one, 0)
        assert status.received == 1


class Crash(BaseException):
    """The process dies here."""


async def test_a_crash_at_every_step_of_the_end(
    blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the store was asked last, the next server brings it to the same end, with one job."""
    operations = ("put", "delete", "delete_all", "fetch", "reserve")
    steps = 0
    for step in range(1, 100):
        name = f"up-{step}"
        left = step
        async with at_desk(blobs, intake) as desk:
            await send(desk, 0, b"some", name=name)
            with monkeypatch.context() as patch:
                for operation in operations:
                    original = getattr(blobs, operation)

                    def dying(*args: object, original: object = original, **options: object) -> object:
                        nonlocal left
                        left -= 1
                        if left <= 0:  # the dead do nothing more
                            raise Crash
                        return original(*args, **options)  # type: ignore[operator]

                    patch.setattr(blobs, operation, dying)
                with contextlib.suppress(Crash):
                    assert (await send(desk, 1, b"thing", name=name, last=1)).state == "complete"
                    steps = step
        async with at_desk(blobs, intake) as desk:
            again = await send(desk, 1, b"thing", name=name, last=1)
            await assert_arrived(again, blobs, intake, b"something", tidy=False)
            assert len(intake.jobs) == step
            await desk.sweeper.sweep(time.time() + LEFTOVER_SECONDS)  # it may have died in the middle of deleting
            assert await blobs.folders("uploads") == []
        if steps:
            break
    assert steps > 6, "there were that many steps to die at"


async def test_a_crash_after_the_end_makes_no_job_anew(
    blobs: BlobStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_desk(blobs, intake) as desk:
        with monkeypatch.context() as patch:

            async def dies(_: object, name: str) -> None:
                raise Crash

            patch.setattr(type(blobs), "delete", dies)
            with pytest.raises(Crash):
                await send(desk, 0, b"all", last=0)
    assert intake.jobs.popitem()  # done, and deleted by its owner
    async with at_desk(blobs, intake) as desk:
        assert (await desk.chunked.status(ME, "up")).state == "complete"
    assert intake.jobs == {}
    assert await blobs.folders("uploads") == []


async def test_a_crash_while_a_chunk_is_written(tmp_path: Path, intake: Intake) -> None:
    """What lies in the folder of temporary files is nobody's chunk."""
    store = open_blobs(str(tmp_path / "blobs"))
    await store.open()
    async with at_desk(store, intake) as desk:
        await send(desk, 0)
        (tmp_path / "blobs" / ".temp" / "half").write_bytes(DATA[1][:1])
    async with at_desk(store, intake) as desk:
        assert (await desk.chunked.status(ME, "up")).received == 1
    await store.close()


async def test_a_store_that_is_away(desk: UploadDesk, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await send(desk, 0)

    def away(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "_put", away)
        with refuses("store_unavailable"):
            await send(desk, 1)
    assert (await send(desk, 1)).received == 2


async def test_what_begins_as_files_do() -> None:
    assert chunks.begins_a_file(b"\0\0\0\x20ftypM4A ")
    assert chunks.begins_a_file(b"OggS\0\x02\0\0")
    assert not chunks.begins_a_file(b"OggS\0\0\0\0"), "a page in the middle"
    assert not chunks.begins_a_file(b"\xff\xfb\x90\0"), "any part of an MP3 begins so"
    assert not chunks.begins_a_file(b"")


async def test_the_end_is_reached_while_nobody_waits(desk: UploadDesk, blobs: BlobStore, intake: Intake) -> None:
    """The task that joins outlives its request, and is over before the desk closes."""
    intake.gate.clear()
    sending = asyncio.create_task(send(desk, 0, b"all", last=0))
    await eventually(lambda: bool(intake.checked))
    sending.cancel()
    await desk.close()
    assert intake.jobs == {}
    intake.gate.set()
    async with at_desk(blobs, intake) as other:
        await assert_arrived(await other.chunked.status(ME, "up"), blobs, intake, b"all")
