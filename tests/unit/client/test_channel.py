"""The client's channel against a plain echo ROUTER: who drives, who wakes, what survives."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from zcluster.client.channel import Channel
from zcluster.errors import Closed
from zcluster.types import MS, NEVER

TIMEOUT_S = 20.0


class Echo:
    """A ROUTER that sends everything back, or holds it while `hold` is set; empty (probe) messages are answered."""

    def __init__(self, endpoint: str) -> None:
        self.hold = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        held: list[list[bytes]] = []
        while not self._stop.is_set():
            if self._socket.poll(2):
                held.append(self._socket.recv_multipart())
            if not self.hold:
                for message in held:
                    self._socket.send_multipart(message)
                held.clear()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()


class Client:
    """The smallest protocol on a channel: every message is answered by itself."""

    def __init__(self, endpoints: dict[int, str], **options: bool) -> None:
        self.answers: dict[bytes, int] = {}
        self.threads: dict[bytes, int] = {}
        self.writable: list[int] = []
        self.due = NEVER
        self.deadlines = threading.Event()
        self.channel = Channel(
            endpoints,
            None,
            self._on_message,
            self._on_deadline,
            lambda: self.due,
            on_writable=self._on_writable,
            **options,
        )

    def _on_message(self, key: int, parts: list[bytes], now: int) -> None:
        assert now <= time.monotonic_ns()
        self.answers[parts[-1]] = len(parts)
        self.threads[parts[-1]] = threading.get_ident()

    def _on_deadline(self, now: int) -> None:
        assert now >= self.due
        self.due = NEVER
        self.deadlines.set()

    def _on_writable(self, key: int) -> None:
        self.writable.append(key)

    def send(self, *parts: bytes, key: int = 1) -> bool:
        with self.channel.lock:
            return self.channel.send(key, list(parts))

    def call(self, *parts: bytes, key: int = 1) -> bytes:
        until = time.monotonic() + TIMEOUT_S
        while not self.send(*parts, key=key):
            assert time.monotonic() < until
            self.channel.wait(lambda: bool(self.writable), 0.05)
        assert self.channel.wait(lambda: parts[-1] in self.answers, TIMEOUT_S)
        return parts[-1]

    def until(self, holds: Callable[[], bool]) -> None:
        """Without driving: only the background thread works."""
        until = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.001)


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="zch-") as directory:
        yield f"ipc://{directory}/echo"


@pytest.fixture
def echo(endpoint: str) -> Iterator[Echo]:
    one = Echo(endpoint)
    yield one
    one.close()


@pytest.fixture
def client(echo: Echo, endpoint: str) -> Iterator[Client]:
    one = Client({1: endpoint})
    yield one
    one.channel.close()


def test_the_waiting_thread_receives_for_itself(client: Client, echo: Echo) -> None:
    """Each answer is held until somebody drives, so that the background thread cannot be quicker."""
    client.call(b"first")
    me = threading.get_ident()

    def answer_the_driver() -> None:
        client.until(lambda: client.channel._driver == me)
        echo.hold = False

    for i in range(10):
        echo.hold = True
        helper = threading.Thread(target=answer_the_driver)
        helper.start()
        client.call(b"%d" % i)
        helper.join()
    assert [client.threads[b"%d" % i] for i in range(10)] == [me] * 10


def test_answers_come_without_a_waiter(client: Client) -> None:
    client.call(b"first")
    assert client.send(b"alone")
    client.until(lambda: b"alone" in client.answers)


def test_messages_of_many_and_large_parts_arrive_whole(client: Client) -> None:
    client.call(b"a", b"b", b"c")
    assert client.answers[b"c"] == 3
    big = os.urandom(1 << 20)
    client.call(b"head", big)
    assert client.answers[big] == 2


def test_many_waiters_are_each_woken_for_their_own(client: Client, echo: Echo) -> None:
    client.call(b"first")
    done: list[bytes] = []

    def run(base: int) -> None:
        for i in range(40):
            done.append(client.call(b"%d-%d" % (base, i)))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(done) == 480


def test_a_driver_that_leaves_hands_over(client: Client, echo: Echo) -> None:
    client.call(b"first")
    echo.hold = True
    assert client.send(b"late")
    driving = threading.Event()

    def drive() -> None:
        driving.set()
        client.channel.wait(lambda: False, 0.1)

    driver = threading.Thread(target=drive)
    driver.start()
    driving.wait(TIMEOUT_S)
    answered: list[bool] = []
    follower = threading.Thread(
        target=lambda: answered.append(client.channel.wait(lambda: b"late" in client.answers, TIMEOUT_S))
    )
    follower.start()
    driver.join()
    echo.hold = False
    follower.join(TIMEOUT_S)
    assert answered == [True]


def test_wait_times_out_and_says_so(client: Client) -> None:
    began = time.monotonic()
    assert not client.channel.wait(lambda: False, 0.02)
    assert 0.015 < time.monotonic() - began < 5
    assert client.channel.wait(lambda: True, 0)


def test_a_change_from_outside_is_seen_after_a_kick(client: Client) -> None:
    changed = threading.Event()

    def change() -> None:
        with client.channel.lock:
            changed.set()
        client.channel.kick(recheck=True)

    threading.Timer(0.01, change).start()
    assert client.channel.wait(changed.is_set, TIMEOUT_S)


def test_deadlines_are_met_by_the_background_thread_and_by_waiters(client: Client) -> None:
    client.due = time.monotonic_ns() + 5 * MS
    client.channel.kick()
    assert client.deadlines.wait(TIMEOUT_S)
    client.deadlines.clear()
    client.due = time.monotonic_ns() + 5 * MS
    assert client.channel.wait(client.deadlines.is_set, TIMEOUT_S)


def test_nothing_is_sent_without_a_connection_and_the_owner_hears_when_there_is_one(endpoint: str) -> None:
    client = Client({1: endpoint})
    try:
        assert not client.send(b"x")
        assert not client.send(b"x", key=9)
        echo = Echo(endpoint)
        try:
            client.until(lambda: client.writable == [1])
            client.call(b"x")
        finally:
            echo.close()
    finally:
        client.channel.close()


def test_a_probe_announces_every_new_connection(endpoint: str) -> None:
    client = Client({1: endpoint}, probe=True)
    client.channel.kick()
    try:
        for _ in range(2):
            echo = Echo(endpoint)
            client.until(lambda: b"" in client.answers)
            client.answers.clear()
            echo.close()
    finally:
        client.channel.close()


def test_connections_come_and_go(client: Client, endpoint: str) -> None:
    client.channel.add(2, endpoint)
    client.call(b"two", key=2)
    client.channel.remove(2)
    assert not client.send(b"gone", key=2)
    client.channel.add(1, endpoint)
    client.call(b"one again")


def test_functions_given_to_after_run_without_the_lock_and_may_wait(client: Client) -> None:
    client.call(b"first")
    done: list[bytes] = []
    free: list[bool] = []

    def take() -> None:
        with client.channel.lock:
            free.append(True)

    def more() -> None:
        taker = threading.Thread(target=take)
        taker.start()
        taker.join()
        done.append(b"x")

    def nested() -> None:
        done.append(client.call(b"nested"))

    with client.channel.lock:
        client.channel.after(nested)
        client.channel.after((1).__truediv__, 0)
    client.until(lambda: done == [b"nested"])
    with client.channel.lock:
        client.channel.after(more)
    client.until(lambda: len(done) == 2)
    assert free == [True]


def test_ctrl_c_leaves_the_channel_usable(client: Client, echo: Echo) -> None:
    client.call(b"first")
    for i in range(20):
        timer = threading.Timer(0.002 * (i % 5), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                client.call(b"%d" % i, b"second part")
        timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    client.answers.clear()
    client.call(b"a", b"after")
    assert set(client.answers.values()) == {2}  # no message was cut in half


def test_closing_wakes_waiters_and_is_final(client: Client) -> None:
    errors: list[BaseException] = []
    waiting = threading.Event()

    def run() -> None:
        waiting.set()
        try:
            client.channel.wait(lambda: False)
        except Closed as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    waiting.wait(TIMEOUT_S)
    client.channel.close()
    client.channel.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(errors) == 3
    assert not client.send(b"x")
    with pytest.raises(Closed):
        client.channel.wait(lambda: False)


SCRIPT = """
import os, sys
from zcluster.client.channel import Channel
from zcluster.errors import Closed
from zcluster.types import NEVER

answers = set()

def make():
    note = lambda key, parts, now: answers.add(parts[-1])
    return Channel({1: sys.argv[1]}, None, note, lambda now: None, lambda: NEVER)

def call(channel, text):
    sent = False
    while not sent:
        with channel.lock:
            sent = channel.send(1, [text])
        channel.wait(lambda: False, 0.001)
    assert channel.wait(lambda: text in answers, 20)

channel = make()
call(channel, b"parent")
pid = os.fork()
if pid == 0:
    try:
        channel.wait(lambda: False, 1)
    except Closed:
        channel.close()
        own = make()
        call(own, b"child")
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
call(channel, b"again")
print("done")
"""


def test_a_forked_child_makes_its_own_and_exit_is_silent(echo: Echo, endpoint: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), endpoint],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


class Sleep:
    """The set that the background thread sleeps on; `endless` is set while it sleeps with no end in sight."""

    def __init__(self, epoll: select.epoll) -> None:
        self.endless = threading.Event()
        self._epoll = epoll
        self.modify = epoll.modify

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        if timeout_s >= 3600:
            self.endless.set()
        found = self._epoll.poll(timeout_s)
        self.endless.clear()
        return found


def test_an_idle_channel_costs_nothing(client: Client) -> None:
    """It sleeps until something happens; there is no tick."""
    sleep = Sleep(client.channel._outer)
    object.__setattr__(client.channel, "_outer", sleep)
    client.call(b"first")
    assert sleep.endless.wait(TIMEOUT_S)
    assert client.send(b"second")
    client.until(lambda: b"second" in client.answers)
    assert sleep.endless.wait(TIMEOUT_S)
