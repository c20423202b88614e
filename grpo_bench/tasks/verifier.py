"""Mathematical equivalence through math-verify, in processes that can be stopped.

Sympy may take any time and memory over an expression that a model wrote, and the library's own limit is an alarm
signal that works in the main thread only. Here each comparison runs in a worker process whose limits the kernel
enforces (verify_worker.py), whatever thread asks; what overruns them is wrong, counted, and costs no more than its
limit. Workers are plain subprocesses that import neither torch nor this package. A thread hands them questions, so that
whoever asks can go on with something else until the verdicts are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeVar

from grpo_bench.tasks.latex import decide, has_expression, spelled_out
from grpo_bench.tasks.verify_process import Verdict, VerifyProcess

__all__ = ["Verdict", "Verifier", "known", "then"]

Kind = Literal["expression", "text"]
A = TypeVar("A")
B = TypeVar("B")

MAX_TEXT = 20_000
"""Characters of a response that are searched for its last expression, counted from its end."""
CACHE_SIZE = 50_000
"""Verdicts remembered; an entry takes a few hundred bytes."""


def then(first: Future[A], function: Callable[[A], B | Future[B]]) -> Future[B]:
    """``function`` of what ``first`` gives, once it does; an error of either is the result's."""
    last: Future[B] = Future()

    def pass_on(give: Callable[[], B | Future[B]]) -> None:
        try:
            found = give()
        except BaseException as e:  # must reach whoever waits: a future swallows what its callbacks raise
            last.set_exception(e)
            return
        if isinstance(found, Future):
            found.add_done_callback(lambda done: pass_on(done.result))
        else:
            last.set_result(found)

    first.add_done_callback(lambda done: pass_on(lambda: function(done.result())))
    return last


def known(value: A) -> Future[A]:
    """A future that is done."""
    future: Future[A] = Future()
    future.set_result(value)
    return future


@dataclass(eq=False, slots=True)
class _Question:
    """A comparison that waits for a worker or is in its hands; ``askers`` counts those that wait for the verdict."""

    key: bytes
    kind: Kind
    gold: str
    answer: str
    future: Future[Verdict]
    askers: int = 1


class Verifier:
    """Compares answers with gold answers; a context manager, usable from any thread.

    ``seconds`` is the limit of one comparison in CPU time, so that a busy machine does not change verdicts (time spent
    waiting ends at ``WALL_FACTOR`` times as much); ``workers`` the number of processes, 0 for one per core, at
    most 8. Processes start with the first comparison that needs one. ``verifier_timeouts`` and ``verifier_errors``
    count verdicts given since the start, repeated ones included, so that they do not depend on what is cached.
    """

    def __init__(self, seconds: float = 5.0, workers: int = 0) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds must be positive, not {seconds}")
        self.seconds = seconds
        self.workers = workers or min(8, _cores())
        self.verifier_timeouts = 0
        self.verifier_errors = 0
        self._running: list[VerifyProcess] = []  # the thread's own
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._open: dict[bytes, _Question] = {}
        self._waiting: deque[_Question] = deque()
        self._lock = threading.Lock()  # of what all threads touch
        self._thread: _Dispatcher | None = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes, whatever they are at; a later comparison starts new ones."""
        with self._lock:
            thread = self._thread
            if thread is not None:
                thread.stopping = True
                thread.ring()
        if thread is not None:
            thread.join()

    def equivalent_soon(self, gold: str, answer: str) -> Future[Verdict]:
        r"""Whether gold and answer are one value, both as the content of a ``\boxed{}``; asked without waiting.

        Spelling decides where it can (latex.py); an empty gold answer equals nothing.
        """
        equal = decide(gold, answer)
        return self.ask("expression", gold, answer) if equal is None else known(Verdict(equal))

    def find_soon(self, gold: str, text: str) -> Future[Verdict]:
        """Whether the last expression that math-verify finds in the text equals gold; asked without waiting.

        It looks for "final answer is ..." and boxes first, then for "answer: ...", then for the last formula or number.
        """
        text = text[-MAX_TEXT:]
        if not gold.strip() or not has_expression(text):
            return known(Verdict(False))
        # spelling tells for what it finds but cannot parse (43_5, 5:30 p.m.)
        return then(
            self.ask("text", gold, text),
            lambda v: Verdict(True, "done", v.found) if v.found and decide(gold, v.found) else v,
        )

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts of ``equivalent_soon`` on each (gold, answer)."""
        return [asked.result() for asked in [self.equivalent_soon(*pair) for pair in pairs]]

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts of ``find_soon`` on each (gold, text)."""
        return [asked.result() for asked in [self.find_soon(*pair) for pair in pairs]]

    def ask(self, kind: Kind, gold: str, answer: str) -> Future[Verdict]:
        """math-verify's own verdict, through a worker unless it is remembered; one question for all that ask it now."""
        key = _key(kind, gold, answer)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                verdict = self._cache[key]
                self._count(verdict, 1)
                return known(verdict)
            if key in self._open:
                self._open[key].askers += 1
                return self._open[key].future
            question = self._open[key] = _Question(key, kind, gold, answer, Future())
            self._waiting.append(question)
            if self._thread is None:
                self._thread = _Dispatcher(self)
                self._thread.start()
            self._thread.ring()
        return question.future

    def _count(self, verdict: Verdict, times: int) -> None:
        self.verifier_timeouts += times * (verdict.outcome == "timeout")
        self.verifier_errors += times * (verdict.outcome == "error")

    def _settle(self, question: _Question, verdict: Verdict) -> None:
        with self._lock:
            self._cache[question.key] = verdict
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
            del self._open[question.key]
            self._count(verdict, question.askers)  # before anybody hears of it
        question.future.set_result(verdict)

    def _end(self, error: BaseException | None) -> None:
        """The thread is done: no question stays without an answer, no process without work."""
        with self._lock:
            questions = [*self._open.values()]
            self._open.clear()
            self._waiting.clear()
            self._thread = None
            running, self._running = self._running, []
        for worker in running:
            worker.hang_up()
        for worker in running:
            worker.close()
        for question in questions:
            if error is None:
                question.future.cancel()
            else:
                question.future.set_exception(error)


class _Dispatcher(threading.Thread):
    """Spreads the questions of a verifier over its workers, one at a time each."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__(name="verifier", daemon=True)  # a run that nobody closes must not wait for it at its exit
        self.verifier = verifier
        self.stopping = False
        self._idle: list[VerifyProcess] = []
        self._busy: dict[VerifyProcess, _Question] = {}
        self._heard, self._bell = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._bell, False)

    def ring(self) -> None:
        """There is news. Under the verifier's lock, while this is its thread: afterwards the pipe is closed."""
        with contextlib.suppress(BlockingIOError):  # it has not been heard yet
            os.write(self._bell, b"!")

    def run(self) -> None:
        error: BaseException | None = None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._heard, selectors.EVENT_READ)
                while not self.stopping:
                    self._hand_out(selector)
                    ends = min((worker.deadline for worker in self._busy), default=None)
                    selector.select(None if ends is None else max(0.0, ends - time.monotonic()))
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._heard, 4096)
                    self._take_in(selector)
        except BaseException as e:  # whoever waits for a verdict raises it
            error = e
        for worker in self._busy:
            worker.lost = True  # nothing to wait for: it is killed
        self.verifier._end(error)
        os.close(self._heard)
        os.close(self._bell)

    def _hand_out(self, selector: selectors.BaseSelector) -> None:
        verifier = self.verifier
        while verifier._waiting:  # only this thread takes from it
            if not self._idle and len(verifier._running) == verifier.workers:
                return
            if not self._idle:
                worker = VerifyProcess(verifier.seconds)
                verifier._running.append(worker)
                self._idle.append(worker)
            worker, question = self._idle.pop(), verifier._waiting.popleft()
            exact = question.kind == "text"
            answer = question.answer if exact else spelled_out(question.answer)
            worker.send(question.kind, spelled_out(question.gold), answer)
            selector.register(worker.replies, selectors.EVENT_READ)
            self._busy[worker] = question

    def _take_in(self, selector: selectors.BaseSelector) -> None:
        for worker in [*self._busy]:
            verdict = worker.receive()
            if verdict is not None:
                selector.unregister(worker.replies)
                question = self._busy.pop(worker)
                worker.revive()
                self._idle.append(worker)
                self.verifier._settle(question, verdict)


def _key(kind: str, gold: str, answer: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (kind, gold, answer):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
