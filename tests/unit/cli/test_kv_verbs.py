"""put, get, del, cas: bytes in, bytes out, and an exit code for each outcome."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from tests.unit.cli.conftest import FakeCluster, Run
from zcluster.cli.kv import parse_consistency
from zcluster.errors import InvalidInput


def test_what_is_put_is_what_get_prints_byte_for_byte(run: Run, cluster: FakeCluster) -> None:
    assert run("put", "k", "värde").exit_code == 0
    assert run("get", "k").stdout_bytes == "värde".encode()
    raw = b"\x00\xff\r\n binary"
    assert run("put", "k", "-", input=raw).exit_code == 0
    assert run("get", "k").stdout_bytes == raw


def test_values_with_a_leading_dash_are_values(run: Run, cluster: FakeCluster) -> None:
    assert run("put", "k", "-5", "--json").exit_code == 0
    assert cluster.client.kv.data == {"k": b"-5"}


def test_put_tells_the_revision(run: Run, cluster: FakeCluster) -> None:
    assert run("put", "k", "v", "--timeout", "2s").stderr == "stored, revision 1\n"
    assert json.loads(run("put", "k", "v", "--json").stdout) == {"version": 1, "key": "k", "revision": 2}
    assert cluster.client.kv.calls[0] == ("put", "k", b"v", 2.0)


def test_an_absent_key_is_9(run: Run, cluster: FakeCluster) -> None:
    done = run("get", "k")
    assert (done.exit_code, done.stdout, done.stderr) == (9, "", "error: no key 'k'\n")
    done = run("get", "k", "--json")
    assert (done.exit_code, json.loads(done.stdout)["found"]) == (9, False)
    assert run("del", "k").exit_code == 9


def test_an_empty_value_is_found(run: Run, cluster: FakeCluster) -> None:
    run("put", "k", "")
    done = run("get", "k")
    assert (done.exit_code, done.stdout_bytes) == (0, b"")


def test_get_as_json_gives_text_where_it_is_text_and_base64_always(run: Run, cluster: FakeCluster) -> None:
    cluster.client.kv.data = {"text": b"v", "raw": b"\xff"}
    found = json.loads(run("get", "text", "--json").stdout)
    assert (found["found"], found["value"], found["value_base64"]) == (True, "v", "dg==")
    found = json.loads(run("get", "raw", "--json").stdout)
    assert (found["found"], found["value"], found["value_base64"]) == (True, None, "/w==")


def test_del_tells_whether_the_key_was_there(run: Run, cluster: FakeCluster) -> None:
    run("put", "k", "v")
    assert json.loads(run("del", "k", "--json").stdout) == {"version": 1, "key": "k", "existed": True}
    assert json.loads(run("del", "k", "--json").stdout)["existed"] is False


def test_cas_swaps_or_is_6(run: Run, cluster: FakeCluster) -> None:
    run("put", "k", "old")
    assert run("cas", "k", "old", "new").exit_code == 0
    done = run("cas", "k", "old", "newer")
    assert (done.exit_code, done.stdout) == (6, "")
    assert "not swapped" in done.stderr
    assert json.loads(run("cas", "k", "old", "x", "--json").stdout) == {"version": 1, "key": "k", "swapped": False}
    assert cluster.client.kv.data == {"k": b"new"}


def test_cas_of_an_absent_key_and_to_nothing(run: Run, cluster: FakeCluster) -> None:
    assert run("cas", "k", "--absent", "v").exit_code == 0
    assert run("cas", "k", "--absent", "w").exit_code == 6
    assert run("cas", "k", "v", "--delete").exit_code == 0
    assert cluster.client.kv.data == {}
    assert cluster.client.kv.calls[-1] == ("cas", "k", b"v", None)


@pytest.mark.parametrize("arguments", [["k"], ["k", "a"], ["k", "a", "b", "--absent"], ["k", "-", "-"], []])
def test_cas_with_the_wrong_number_of_values_is_2(run: Run, cluster: FakeCluster, arguments: list[str]) -> None:
    assert run("cas", *arguments).exit_code == 2
    assert cluster.client.kv.calls == []


def test_consistency_is_chosen_by_name(run: Run, cluster: FakeCluster) -> None:
    run("get", "k", "--consistency", "lease")
    assert cluster.client.kv.calls[-1] == ("get", "k", "lease", 10.0)
    assert parse_consistency("bounded:50ms") is not None
    for wrong in ("bounded", "bounded:", "strong", "bounded:x"):
        with pytest.raises(InvalidInput, match="use linearizable"):
            parse_consistency(wrong)


def test_a_value_from_a_closed_standard_input_is_2(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcluster.cli.kv.sys", SimpleNamespace(stdin=None, stdout=sys.stdout))
    done = run("put", "k", "-")
    assert (done.exit_code, "closed" in done.stderr) == (2, True)
    assert cluster.client.kv.data == {}
