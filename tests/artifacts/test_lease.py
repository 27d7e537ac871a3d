"""One builds, others wait and know for whom; a dead or lost holder is replaced, and cannot come back."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from artifacts import lease
from artifacts.errors import LostLeaseError, RemoteError
from artifacts.remote import Remote
from tests.artifacts.processes import running, said

HOLDER = """
    import sys
    from artifacts import lease
    from artifacts.remote import Remote
    url, home, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with lease.held(Remote(url, 60), "k", "a holder", home, seconds, lambda holder: None) as held:
        print(held.token, flush=True)
        sys.stdin.readline()
        try:
            held.require()
            print("mine", flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)
"""


class GivenUp(Exception):  # noqa: N818 - how a test stops waiting
    pass


def give_up(holder: str) -> None:
    raise GivenUp(holder)


def test_of_many_threads_one_holds_it_at_a_time_and_each_gets_its_turn(url: str) -> None:
    inside, most, tokens = [0], [0], []
    lock = threading.Lock()

    def work(number: int) -> None:
        with lease.held(Remote(url, 60), "k", f"thread {number}", f"home {number}", 30, lambda holder: None) as held:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                tokens.append(held.token)
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert tokens == [1, 2, 3, 4, 5]
    assert Remote(url, 60).names("leases") == ["leases/k/00000005"]


def test_who_waits_is_told_for_whom(url: str) -> None:
    with running(HOLDER, url, "there", 30) as holder:
        assert said(holder) == "1"
        with pytest.raises(GivenUp, match="a holder"), lease.held(Remote(url, 60), "k", "me", "here", 30, give_up):
            pass
        with lease.held(Remote(url, 60), "other key", "me", "here", 30, give_up) as held:
            held.require()


def test_a_holder_that_lives_is_not_robbed_however_long_it_takes(url: str) -> None:
    with running(HOLDER, url, "there", 3) as holder:
        assert said(holder) == "1"
        started = time.monotonic()

        def waiting(told: str) -> None:
            if time.monotonic() - started > 5:
                raise GivenUp(told)

        with pytest.raises(GivenUp), lease.held(Remote(url, 60), "k", "me", "here", 3, waiting):
            pass


def test_a_killed_holder_is_replaced_when_it_was_not_heard_of_for_long_enough(url: str) -> None:
    with running(HOLDER, url, "there", 1) as holder:
        assert said(holder) == "1"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        started = time.monotonic()
        with lease.held(Remote(url, 60), "k", "me", "here", 1, lambda told: None) as held:
            assert held.token == 2
        assert time.monotonic() - started > 1


def test_a_dead_process_of_the_same_store_is_not_waited_for(url: str) -> None:
    with running(HOLDER, url, "same store", 600) as holder:
        assert said(holder) == "1"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lease.held(Remote(url, 60), "k", "me", "same store", 600, give_up) as held:
            assert held.token == 2


def test_a_holder_that_was_stopped_for_too_long_finds_that_it_lost(url: str) -> None:
    with running(HOLDER, url, "there", 1) as holder:
        assert said(holder) == "1"
        holder.send_signal(signal.SIGSTOP)
        with lease.held(Remote(url, 60), "k", "me", "here", 1, lambda told: None) as held:
            holder.send_signal(signal.SIGCONT)
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert said(holder) == "LostLeaseError"
            held.require()
        holder.wait(10)
        assert Remote(url, 60).names("leases/k") == ["leases/k/00000002"]


def test_no_token_is_given_twice_so_that_an_old_holder_never_passes_for_a_new_one(url: str) -> None:
    remote = Remote(url, 60)
    with lease.held(remote, "k", "first", "a", 30, give_up) as first:
        pass
    with lease.held(remote, "k", "second", "b", 30, give_up):
        with pytest.raises(LostLeaseError, match=r"token 2, not 1"):
            first.require()
        first.release()
        with pytest.raises(GivenUp, match="second"), lease.held(remote, "k", "third", "c", 30, give_up):
            pass


def test_a_file_that_says_nothing_counts_as_a_holder_until_it_is_dead(url: str) -> None:
    remote = Remote(url, 60)
    remote.write("leases/k/00000007", b"\xff half a cl")
    with lease.held(remote, "k", "me", "here", 0.5, lambda told: None) as held:
        assert held.token == 8


def test_a_holder_goes_on_when_the_remote_is_gone_and_finds_out_at_the_end(tmp_path: Path) -> None:
    share = tmp_path / "share"
    with lease.held(Remote(str(share), 60), "k", "me", "here", 0.4, give_up) as held:
        share.rename(tmp_path / "unplugged")
        share.write_text("no directory")
        time.sleep(0.5)
        with pytest.raises(RemoteError):
            held.require()
