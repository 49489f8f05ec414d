"""Operations on keys and values: what they answer, what they refuse, and that captures never show."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.machines import kv as kv_module
from zcluster.machines.keys import KeyIndex, first_keys
from zcluster.machines.kv import KvStore
from zcluster.wire import (
    E_BAD_REQUEST,
    E_FULL,
    E_TOO_LARGE,
    OP_APPEND,
    OP_CAS,
    OP_DELETE,
    OP_GET,
    OP_LIST,
    OP_PUT,
    OP_REGISTER,
)


def make_store() -> KvStore:
    return KvStore(key_bytes_max=64, value_bytes_max=1024)


def one(store: KvStore, *op: Any) -> Any:
    (result,) = store.apply([list(op)])
    return result


def test_put_returns_the_global_revision() -> None:
    store = make_store()
    assert store.apply([[OP_PUT, "a", b"1"], [OP_PUT, "b", b"2"], [OP_PUT, "a", b"1"]]) == [1, 2, 3]


def test_get_returns_the_value_or_none() -> None:
    store = make_store()
    one(store, OP_PUT, "a", b"")
    assert store.query([[OP_GET, "a"], [OP_GET, "b"]]) == [b"", None]


def test_delete_returns_whether_the_key_existed_and_only_then_counts() -> None:
    store = make_store()
    one(store, OP_PUT, "a", b"1")
    assert one(store, OP_DELETE, "a") is True
    assert store.revision == 2
    assert one(store, OP_DELETE, "a") is False
    assert store.revision == 2


@pytest.mark.parametrize(
    ("before", "expected", "new", "result", "after", "revision"),
    [
        (None, None, b"x", True, b"x", 1),
        (None, b"a", b"x", False, None, 0),
        (b"a", None, b"x", False, b"a", 1),
        (b"a", b"a", b"x", True, b"x", 2),
        (b"a", b"b", b"x", False, b"a", 1),
        (b"a", b"a", None, True, None, 2),
        (b"a", b"b", None, False, b"a", 1),
        (None, None, None, True, None, 0),
        (b"", None, b"x", False, b"", 1),
    ],
)
def test_cas(before: Any, expected: Any, new: Any, result: bool, after: Any, revision: int) -> None:
    store = make_store()
    if before is not None:
        one(store, OP_PUT, "k", before)
    assert one(store, OP_CAS, "k", expected, new) is result
    assert store.query([[OP_GET, "k"]]) == [after]
    assert store.revision == revision


def test_append_returns_the_new_value_and_creates_the_key() -> None:
    store = make_store()
    assert one(store, OP_APPEND, "k", b"ab") == b"ab"
    assert one(store, OP_APPEND, "k", b"c") == b"abc"
    assert store.revision == 2


def test_keys_and_values_at_their_limits() -> None:
    store = make_store()
    assert one(store, OP_PUT, "é" * 32, b"x" * 1024) == 1
    for op in (
        [OP_PUT, "é" * 33, b""],
        [OP_PUT, "k", b"x" * 1025],
        [OP_CAS, "k" * 65, None, b""],
        [OP_CAS, "k", None, b"x" * 1025],
        [OP_APPEND, "k" * 65, b""],
        [OP_APPEND, "é" * 32, b"x"],
    ):
        code, text = one(store, *op)
        assert code == E_TOO_LARGE
        assert "bytes_max is" in text
    assert store.revision == 1


@pytest.mark.parametrize(
    "op",
    [
        [],
        [True],
        ["put", "a", b"b"],
        [None],
        [99, "a"],
        [OP_REGISTER],
        [OP_PUT],
        [OP_PUT, "a"],
        [OP_PUT, b"a", b"b"],
        [OP_PUT, "a", "b"],
        [OP_PUT, "a", None],
        [OP_PUT, "a", b"b", 1],
        [OP_GET],
        [OP_GET, 1],
        [OP_GET, "a", "b"],
        [OP_DELETE, None],
        [OP_DELETE],
        [OP_CAS, "a", b""],
        [OP_CAS, "a", 1, b""],
        [OP_CAS, "a", b"", "x"],
        [OP_CAS, 1, None, None],
        [OP_APPEND, "a", "b"],
        [OP_APPEND, "a"],
        [OP_LIST, "a"],
        [OP_LIST, "a", 1, 1],
        [OP_LIST, "a", None, 0],
        [OP_LIST, "a", None, True],
        [OP_LIST, "a", None, -1],
        [OP_LIST, 0, None, 5],
    ],
)
def test_garbage_is_a_result_and_changes_nothing(op: list[Any]) -> None:
    store = make_store()
    before, bad, after = store.apply([[OP_PUT, "k", b"1"], op, [OP_PUT, "k", b"2"]])
    assert bad[0] == E_BAD_REQUEST
    assert isinstance(bad[1], str)
    assert (before, after) == (1, 2)
    assert store.query([op])[0][0] == E_BAD_REQUEST


def test_query_refuses_operations_that_write() -> None:
    store = make_store()
    for op in ([OP_PUT, "a", b""], [OP_DELETE, "a"], [OP_CAS, "a", None, b""], [OP_APPEND, "a", b""]):
        assert store.query([op])[0][0] == E_BAD_REQUEST
    assert list(store.items()) == []


# -- list -------------------------------------------------------------------------------------------------------------
def listed(store: KvStore, prefix: str, count: int = 100) -> dict[str, bytes]:
    """All pages of a listing; checks that `more` tells the truth."""
    found: dict[str, bytes] = {}
    after = None
    while True:
        pairs, more = store.query([[OP_LIST, prefix, after, count]])[0]
        assert len(pairs) <= 2 * count
        found.update(zip(pairs[::2], pairs[1::2], strict=True))
        if not more:
            return found
        assert pairs
        after = pairs[-2]


def test_list_is_in_order_of_code_points() -> None:
    store = make_store()
    names = ["b", "a", "", "é", "z", "\U0001f600", "\ue000", "aa", "B"]
    for name in names:
        one(store, OP_PUT, name, name.encode())
    assert list(listed(store, "")) == sorted(names) == sorted(names, key=str.encode)
    assert list(listed(store, "a", count=1)) == ["a", "aa"]
    assert listed(store, "nothing") == {}


def test_list_is_cut_at_its_bounds_and_says_that_there_is_more() -> None:
    store = KvStore(64, 1 << 20)
    for i in range(5):
        one(store, OP_PUT, f"k{i}", b"x" * 400_000)
    pairs, more = store.query([[OP_LIST, "k", None, 100]])[0]
    assert (pairs[::2], more) == (["k0", "k1"], True)
    one(store, OP_PUT, "big", b"x" * (1 << 20))
    assert store.query([[OP_LIST, "b", None, 100]])[0] == [["big", b"x" * (1 << 20)], False]
    assert list(listed(store, "")) == ["big", "k0", "k1", "k2", "k3", "k4"]


def test_reply_bytes_of_a_frame_are_bounded_and_something_is_always_answered() -> None:
    store = KvStore(64, 4 << 20)
    one(store, OP_PUT, "k", b"x" * (4 << 20))
    results = store.query([[OP_GET, "k"]] * 5)
    assert [type(r) for r in results] == [bytes, bytes, list, list, list]
    assert results[2][0] == E_FULL
    results = store.apply([[OP_GET, "k"], [OP_GET, "k"], [OP_APPEND, "new", b""], [OP_PUT, "k", b""]])
    assert results[2][0] == E_FULL
    assert results[3] == 2


# -- captures ---------------------------------------------------------------------------------------------------------
def pairs_of(view: kv_module.View) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for chunk in view.pairs():
        found.update(zip(chunk[::2], chunk[1::2], strict=True))  # type: ignore[arg-type]
    return found


KEYS = st.sampled_from(["", "a", "ab", "b", "ba", "c", "é"])
VALUES = st.binary(max_size=3)
MAYBE = st.none() | VALUES
OPS = st.one_of(
    st.tuples(st.just(OP_PUT), KEYS, VALUES),
    st.tuples(st.just(OP_DELETE), KEYS),
    st.tuples(st.just(OP_CAS), KEYS, MAYBE, MAYBE),
    st.tuples(st.just(OP_APPEND), KEYS, VALUES),
    st.tuples(st.just(OP_GET), KEYS),
    st.tuples(st.just(OP_LIST), KEYS, st.none() | KEYS, st.integers(1, 3)),
)
STEPS = st.lists(st.one_of(OPS.map(list), st.sampled_from(["capture", "close", "maintain"])), max_size=60)


def model_apply(model: dict[str, bytes], op: list[Any]) -> Any:
    """The same operations on a plain dict; None for a put (the revision is checked elsewhere)."""
    code, key = op[0], op[1]
    if code == OP_PUT:
        model[key] = op[2]
        return None
    if code == OP_GET:
        return model.get(key)
    if code == OP_DELETE:
        return model.pop(key, None) is not None
    if code == OP_APPEND:
        model[key] = model.get(key, b"") + op[2]
        return model[key]
    if code == OP_CAS:
        if model.get(key) != op[2]:
            return False
        model.pop(key, None)
        if op[3] is not None:
            model[key] = op[3]
        return True
    found = [k for k in sorted(model) if k.startswith(key) and (op[2] is None or k > op[2])]
    return [[x for k in found[: op[3]] for x in (k, model[k])], len(found) > op[3]]


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_behaves_like_a_dict_whatever_is_captured_meanwhile(steps: list[Any]) -> None:
    store, model = make_store(), {}
    store._index = KeyIndex(store._base, build_at_once_max=2)
    view: kv_module.View | None = None
    frozen: dict[str, bytes] = {}
    for step in steps:
        if step == "capture":
            if view is None:
                view, frozen = store.capture(), dict(model)
        elif step == "close":
            if view is not None:
                assert pairs_of(view) == frozen
                view.close()
                view = None
        elif step == "maintain":
            kv_module.MERGE_SLICE, slice_ = 1, kv_module.MERGE_SLICE  # type: ignore[misc]
            store.maintain()
            kv_module.MERGE_SLICE = slice_  # type: ignore[misc]
        else:
            (result,) = store.apply([step])
            expected = model_apply(model, step)
            if step[0] != OP_PUT:
                assert result == expected
        assert len(store) == len(model)
    assert dict(store.items()) == model
    if view is not None:
        assert pairs_of(view) == frozen
        view.close()
    while store.maintain():
        pass
    assert dict(store.items()) == model == store._base


def test_overlay_is_merged_back_in_bounded_slices() -> None:
    store = make_store()
    view = store.capture()
    store.apply([[OP_PUT, f"k{i}", b"v"] for i in range(10_000)])
    assert store.maintain() is False, "nothing to do while the view is open"
    assert not store._base
    view.close()
    slices = 1
    while store.maintain():
        slices += 1
        assert len(store._base) <= slices * kv_module.MERGE_SLICE
    assert slices == 5
    assert len(store._base) == 10_000


def test_capture_does_not_look_at_the_keys() -> None:
    """O(1): the view shares the dict instead of copying it."""
    store = make_store()
    store.apply([[OP_PUT, f"k{i}", b"v"] for i in range(1000)])
    view = store.capture()
    assert view._base is store._base
    view.close()


def test_the_map_is_invisible_to_the_garbage_collector() -> None:
    store = make_store()
    store.apply([[OP_PUT, f"k{i}", b"v"] for i in range(1000)])
    gc.collect()
    assert not gc.is_tracked(store._base)


# -- the index of keys ------------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "ask", "work"]), st.integers(0, 40)), max_size=120),
    st.integers(0, 30),
)
def test_index_agrees_with_sorting(steps: list[tuple[str, int]], build_at_once_max: int) -> None:
    data: dict[str, int] = {}
    index = KeyIndex(data, build_at_once_max)
    for step, number in steps:
        key = f"{number:03}"
        if step == "add":
            data[key] = 0
        elif step == "remove":
            if data.pop(key, None) is not None:
                index.removed(key)
        elif step == "work":
            index.work()
        else:
            assert list(index.after("0", key, 5))[:5] == first_keys(data, "0", key, 5)
    while index.work():
        pass
    assert list(index.after("", None, 1000)) == sorted(data)


def test_large_index_is_built_in_slices_and_answers_meanwhile() -> None:
    data = {f"{i * 7919 % 12_000:05}": 0 for i in range(12_000)}
    index = KeyIndex(data, build_at_once_max=100)
    slices = 0
    while True:
        assert list(index.after("01", "01500", 3))[:3] == ["01501", "01502", "01503"]
        if slices == 5:
            for key in list(data)[:3000]:
                del data[key]
                index.removed(key)
            data["01501"] = data["01502"] = data["01503"] = 1
        if not index.work():
            break
        slices += 1
    assert slices >= 30
    assert list(index.after("", None, 10)) == sorted(data)


def test_an_index_nobody_asks_for_is_dropped() -> None:
    data = {f"{i:05}": 0 for i in range(12_000)}
    index = KeyIndex(data)
    assert next(index.after("", None, 1)) == "00000"
    for key in list(data)[:11_000]:
        del data[key]
        index.removed(key)
    assert len(index._removed) < 10_000
    assert list(index.after("", None, 5000)) == sorted(data)
