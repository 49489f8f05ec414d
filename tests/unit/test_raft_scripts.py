"""Every story under `tests/scripts` comes out as it is written; the language refuses what it does not know; and the
witness, which looks at all replicas together, speaks up when it should.

`ZCLUSTER_REGENERATE=1 pytest tests/unit/test_raft_scripts.py` writes the outputs anew; commit what you understand.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zcluster.sim.script import ScriptError, Violation, World, main, replay
from zcluster.types import Entry

ROOT = Path(__file__).parent.parent / "scripts"
SCRIPTS = sorted(ROOT.rglob("*.txt"))
OPENING = "replicas 1 2 3\ncampaign 1\nstabilize\n----\n1 leads term 1\n1 commits 1/1\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    text = path.read_text()
    now = replay(text)
    if os.environ.get("ZCLUSTER_REGENERATE"):
        path.write_text(now)
    else:
        assert now == text


def test_there_are_scripts() -> None:
    names = {path.stem for path in SCRIPTS}
    assert names >= {
        "figure_7",
        "figure_8",
        "pre_vote",
        "check_quorum",
        "slow_follower",
        "snapshot_in_flight",
        "transfer",
    }
    assert sum(name.startswith("mistake_") for name in names) >= 25


def test_the_readme_names_every_command_and_every_mistake() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [
        command for command in World.commands() if f"`{command} " not in readme and f"`{command}`" not in readme
    ] == []
    assert [path.stem for path in SCRIPTS if path.stem.startswith("mistake_") and f"`{path.stem}`" not in readme] == []


# -- the language -----------------------------------------------------------------------------------------------------


def test_output_that_differs_is_replaced_and_all_else_stays() -> None:
    wrong = "# Why.\n\n" + OPENING.replace("1/1", "9/9") + "\n# The end.\n"
    assert replay(wrong) == "# Why.\n\n" + OPENING + "\n# The end.\n"


@pytest.mark.parametrize(
    ("commands", "line", "reason"),
    [
        ("fly 1\n----\n", 1, "unknown command 'fly'"),
        ("status\n----\n", 1, "the first command must be `replicas`"),
        ("replicas 1 2 3\nreplicas 1\n----\n", 2, "`replicas` comes once"),
        ("# Why.\nreplicas 1 2 3\n----\n\ncampaign 1\ncampaign 9\n----\n", 6, "replica 9 does not run"),
        ("replicas 1 2 3\ncampaign one\n----\n", 2, "not a number: 'one'"),
        ("replicas 1 2 3\ncampaign\n----\n", 2, "usage: campaign ID"),
        ("replicas 1 2 3\ncampaign 1 with=2\n----\n", 2, "usage: campaign ID"),
        ("replicas 1 2 3\ncampaign 1 by=law\n----\n", 2, "by=timeout or by=transfer"),
        ("replicas 1 2 3\ncampaign 2 by=transfer\n----\n", 2, "follows nobody"),
        ("replicas 1 2 3\ndeliver 1-2\n----\n", 2, "neither A->B nor a kind of message: '1-2'"),
        ("replicas 1 2 3\ndrop first=1\n----\n", 2, "only 0 such messages"),
        ("replicas 1 2 3\nlog 1 1\nlog 1 1\n----\n", 3, "has a past already"),
        ("replicas 1 2 3\ncertify 1\n----\n", 2, "life 1 of replica 1 has not exited"),
        ("replicas 1 2 3\nrestart 1\n----\n", 2, "is not down"),
        ("replicas 1 2 3\ncrash 1\nrestart 1 disk=gone\n----\n", 3, "none of its values"),
        ("replicas 1 2 3\njoin 3\n----\n", 2, "never used again"),
        ("replicas 1 2 3\nreturn x\n----\n", 2, "nothing is held as 'x'"),
        ("replicas 1 2 3\nsync 1 2\n----\n", 2, "only 0 writes"),
        ("replicas 1 2 3\ncompact 1\n----\n", 2, "has not applied 0"),
        ("replicas 1 2 3 durability=some\n----\n", 1, "fsync or weak"),
        ("settings speed=1\n----\n", 1, "no such setting: speed"),
        ("replicas 1 2 3\nsettings inflight_max=1\n----\n", 2, "come before"),
        ("replicas 1 2 3\n\nstatus\n----\n", 2, "needs `----`"),
    ],
)
def test_a_wrong_script_is_refused_with_its_line(commands: str, line: int, reason: str) -> None:
    with pytest.raises(ScriptError) as caught:
        replay(commands)
    assert caught.value.line == line
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"line {line}: ")


def test_the_command_line_shows_what_differs_and_writes_it_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(OPENING.replace("1/1", "9/9"))
    assert main([str(path)]) == 1
    assert "-1 commits 9/9" in capsys.readouterr().out
    assert main([str(path), "--write"]) == 0
    assert path.read_text() == OPENING
    assert main([str(path)]) == 0
    path.write_text("fly\n----\n")
    assert main([str(path), "--write"]) == 1
    assert f"{path}: line 1: unknown command" in capsys.readouterr().out


# -- the witness ------------------------------------------------------------------------------------------------------


def opened() -> World:
    world = World()
    for command in ("replicas 1 2 3", "campaign 1", "run 10"):
        world.run(command)
    return world


def test_two_leaders_of_a_term_are_noticed() -> None:
    world = opened()
    world.witness.leaders[2] = 3
    world.run("transfer 1 2")
    with pytest.raises(Violation, match="replicas 3 and 2 both lead term 2"):
        world.run("stabilize")


def test_a_leader_without_a_committed_entry_is_noticed() -> None:
    world = opened()
    world.witness.chosen[2] = Entry(2, 1, 0, b"lost")
    world.run("transfer 1 2")
    with pytest.raises(Violation, match="replica 2 leads term 2 without committed entry 2/1"):
        world.run("stabilize")


def test_two_entries_at_one_index_are_noticed() -> None:
    world = opened()
    world.witness.chosen[2] = Entry(2, 1, 0, b"other")
    world.run("propose 1 a")
    with pytest.raises(Violation, match="applies 2/1:a, others another entry there"):
        world.run("stabilize")


def test_a_commit_without_a_durable_majority_is_noticed() -> None:
    world = opened()
    for command in ("propose 1 a", "deliver 1->2"):
        world.run(command)
    world.disks[2].wipe()
    with pytest.raises(Violation, match="replica 1 commits 2/1 with 1 durable copies"):
        world.run("deliver 2->1")


def test_stale_reads_are_noticed() -> None:
    world = opened()
    world.witness.commits.append((world.now, 5))
    world.run("run 100")
    with pytest.raises(Violation, match="read 1 is served at 1, but 5 was committed"):
        world.run("read 1 1 lease=yes")
    with pytest.raises(Violation, match="a bounded read at 1 misses 5"):
        world.run("bounded 1 80")


def test_a_broken_invariant_of_a_core_is_a_violation_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcluster.consensus.quorum.majority", lambda voters: 1)
    with pytest.raises(Violation, match=r"line \d: .*: replicas 1 and 2 both lead term 1"):
        replay("replicas 1 2 3\ncampaign 1\ncampaign 2\nstabilize\n----\n")
