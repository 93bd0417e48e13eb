"""Answers that are kept and sent again while nothing can have changed, and are made only once.

No answer is older than the request that it goes to. How that is known without asking the question:

1. A *token* (`sql/counts/read_token.sql`) is the set of transactions that have ended. The set only
   grows, so where two tokens are equal, no transaction has ended in between, and between them no
   statement found other rows. Answers that count back from the clock also depend on its second.
2. A request goes by a token whose statement was sent after the request arrived. Every write that
   was confirmed before the request is in it, whichever process or program made that write.
3. An answer is kept under a token that was read *before* the answer was made. The answer may be
   newer than its token, never older. If it is newer, then a transaction has ended since, no later
   token is equal, and the answer is never sent under it again. If a later token is equal, the
   answer is what the question would be answered with now.

4. The answer is made on the server that the token was read on. A pool is on one server at a time;
   if it has moved between the two, the request fails, and nothing is kept under the old token.

So a request may take any answer kept, or being made, under a token equal to its own; and a client
that holds an answer with the ETag made from the token holds what it would be sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from importlib.metadata import version
from typing import Final

from audit.history import cursor
from audit.history.asking import Reading, Token
from audit.history.query import TaskQuery
from audit.once import Once

_VERSION: Final = version("task-audit")
#: What an answer takes besides its question and body: the parsed query, mostly.
_OVERHEAD_BYTES: Final = 3072
#: A question is kept as text and, parsed, once more, where decoded text may be wider; and twice in
#: the links of its pages.
_BYTES_OF_A_CHARACTER: Final = 7
_GZIP: Final = zlib.MAX_WBITS | 16
_FASTEST: Final = 1
#: From here on, to compress takes long enough that other requests should go on meanwhile.
_LONG_BYTES: Final = 256 * 1024
#: So many turns of the event loop a request takes from its socket to here.
_TURNS_TO_HERE: Final = 3
#: Read on one connection before questions may have it.
_TOKENS_IN_A_ROW: Final = 16


class Answers:
    """Answers to the questions asked last, `most_bytes` of them; 0: none is kept or shared."""

    def __init__(self, reading: Reading, most_bytes: int) -> None:
        self._reading = reading
        self._tokens = Tokens(reading.read_tokens)
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self.kept_bytes = 0

    async def find(self, question: str, parse: Callable[[], TaskQuery]) -> Answer:
        """Return the answer to a question, made or to be made, that is true from now on.

        `question` is all that the answer depends on, as it was sent; `parse` judges it, and is
        called only where the question is not known. What it raises is raised before the database
        is asked for anything.
        """
        known = self._kept.get(question)
        query = known.query if known else _judged(parse)
        is_moving = query.span is not None and query.cursor is None
        if not self._most_bytes and not is_moving:
            return Answer(self._reading, question, query)
        token = await self._tokens.next()
        mark = f"{token.text} {token.clock.timestamp()}" if is_moving else token.text
        if not self._most_bytes:
            return Answer(self._reading, question, query, clock=token.clock, server=token.server)
        known = self._kept.get(question)
        if known and known.mark == mark:
            self._kept.move_to_end(question)
            return known
        answer = Answer(
            self._reading, question, query, mark, token.clock, token.server, self._weigh
        )
        self._forget(known)
        self._kept[question] = answer
        self._weigh(answer)
        return answer

    def _weigh(self, answer: Answer) -> None:
        """Count what an answer takes now; drop those longest not asked for, over the bound."""
        if self._kept.get(answer.question) is not answer:
            return
        size = answer.size()
        if size > self._most_bytes:
            self._forget(answer)
            return
        self.kept_bytes += size - answer.counted
        answer.counted = size
        while self.kept_bytes > self._most_bytes:
            self._forget(next(iter(self._kept.values())))

    def _forget(self, answer: Answer | None) -> None:
        if answer:
            del self._kept[answer.question]
            self.kept_bytes -= answer.counted


def _judged(parse: Callable[[], TaskQuery]) -> TaskQuery:
    query = parse()
    if query.cursor:
        cursor.decode(query.cursor, query.fingerprint, has_clock=query.span is not None)
    return query


class Answer:
    """The answer to one question under one token; its body is made when it is first asked for."""

    def __init__(
        self,
        reading: Reading,
        question: str,
        query: TaskQuery,
        mark: str | None = None,
        clock: datetime | None = None,
        server: str | None = None,
        weigh: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        self.question = question
        self.query = query
        #: What the answer is true under; None: it is not to be kept.
        self.mark = mark
        self.etag = _etag(question, mark) if mark else None
        self.counted = 0
        #: How many tasks the body has; None: it is not made yet.
        self.rows: int | None = None
        #: Of the page, once the body is made.
        self.total: int | None = None
        self.next_cursor: str | None = None
        #: Its header fields, once they are made: the same for all who ask.
        self.head: dict[str, str] | None = None
        self._reading = reading
        self._clock = clock
        self._server = server
        self._weigh = weigh
        self._page: bytes | None = None
        self._packed: bytes | None = None
        self._making: Once[bytes] = Once()
        self._packing: Once[bytes] = Once()

    async def body(self) -> bytes:
        """Return the JSON of the page."""
        if self.mark is None:
            return self._page or await self._make()
        return self._page or await self._making.result(self._make)

    async def gzip_body(self) -> bytes:
        """Return the JSON of the page, compressed."""
        return self._packed or await self._packing.result(self._pack)

    def size(self) -> int:
        """Return about how many bytes of memory it takes."""
        return (
            _OVERHEAD_BYTES
            + _BYTES_OF_A_CHARACTER * len(self.question)
            + len(self._page or b"")
            + len(self._packed or b"")
        )

    async def _make(self) -> bytes:
        page = await self._reading.list_tasks(self.query, clock=self._clock, server=self._server)
        self.rows, self.total, self.next_cursor = page.rows, page.total, page.next_cursor
        self._page = page.to_json()
        self._weigh(self)
        return self._page

    async def _pack(self) -> bytes:
        page = await self.body()
        if len(page) > _LONG_BYTES:
            self._packed = await asyncio.to_thread(zlib.compress, page, _FASTEST, _GZIP)
        else:
            self._packed = zlib.compress(page, _FASTEST, _GZIP)
        self._weigh(self)
        return self._packed


def _etag(question: str, mark: str) -> str:
    """Made without the body, it is the same in every worker. Weak: gzip or not is left open."""
    told = f"{_VERSION}\n{mark}\n{question}".encode("utf-8", "surrogateescape")
    return f'W/"{hashlib.blake2b(told, digest_size=12).hexdigest()}"'


class Tokens:
    """Reads tokens, one at a time, each for all who wait for it."""

    def __init__(self, read: Callable[[], AsyncGenerator[Token, None]]) -> None:
        self._read = read
        self._waiting: list[asyncio.Future[Token]] = []
        self._reader: asyncio.Task[None] | None = None

    async def next(self) -> Token:
        """Return a token that is asked for from now on, not one that is on its way.

        Raises:
            Problem: the database did not give it. All who waited for it are told the same.
        """
        future: asyncio.Future[Token] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_while_waited_for())
        return await future

    async def _read_while_waited_for(self) -> None:
        while self._waiting:
            waiting: list[asyncio.Future[Token]] = []
            try:
                async with aclosing(self._read()) as tokens:
                    for _ in range(_TOKENS_IN_A_ROW):
                        # Who comes from here on waits for the next one.
                        waiting, self._waiting = self._waiting, []
                        token = await anext(tokens)
                        for future in waiting:
                            if not future.done():
                                future.set_result(token)
                        # Who was just answered may ask again at once: the next is for them all.
                        for _ in range(_TURNS_TO_HERE):
                            await asyncio.sleep(0)
                        if not self._waiting:
                            break
            except Exception as failure:  # noqa: BLE001 - it is theirs who wait
                for future in waiting:
                    if not future.done():
                        future.set_exception(failure)
        self._reader = None
