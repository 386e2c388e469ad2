"""What to do next with a Cloud TPU VM: for whatever is seen, and in the cases that matter."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launch.common import STOPPED
from launch.tpu_states import FAILURE_LIMIT, UNREACHABLE_LIMIT, Do, History, Seen, decide

QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUsPerProject' has been exceeded."
REQUESTS = [None, "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
REQUESTS += ["SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "NEVER_HEARD_OF"]
VMS = [None, "CREATING", "READY", "PREEMPTED", "TERMINATED", "REPAIRING", "STOPPED", "NEW_STATE"]
STATES = ["absent", "ready", "running", "exited 0", "exited 1", f"exited {STOPPED}", "unreachable"]
SEEN = st.builds(
    Seen,
    st.sampled_from(REQUESTS),
    st.sampled_from(VMS),
    st.lists(st.sampled_from([*STATES, "busy other", "differs"]), max_size=4).map(tuple),
    st.sampled_from(["", "503", QUOTA]),
)
HISTORY = st.builds(
    History, *[st.booleans()] * 3, *[st.integers(0, max(FAILURE_LIMIT, UNREACHABLE_LIMIT) + 1)] * 2
)


@given(SEEN, HISTORY)
@example(Seen("NEVER_HEARD_OF", "READY", ("absent",)), History())
@example(Seen("ACTIVE", "READY", ()), History(unreachable=UNREACHABLE_LIMIT))
def test_whatever_is_seen_there_is_an_action_and_none_that_does_harm(seen, history):
    action, after = decide(seen, history)
    if history.existing:
        assert action.do not in (Do.CREATE, Do.DELETE)
    if action.do is Do.CREATE:
        assert seen.request is None
        assert seen.vm is None
    if action.do in (Do.INSTALL, Do.START, Do.FOLLOW, Do.STOP, Do.FINISH):
        assert seen.vm == "READY"
        assert history.existing or seen.request == "ACTIVE"
        assert not {"unreachable", "busy other", "differs"} & set(seen.workers)
    if action.do is Do.DELETE and seen.vm == "READY" and seen.request == "ACTIVE":
        assert "unreachable" in (seen.workers or ("unreachable",))
        assert history.unreachable >= UNREACHABLE_LIMIT
    if action.do is Do.FINISH:
        assert set(seen.workers) == {"exited 0"}
    assert (action.status != 0) == (action.do is Do.FAIL)
    assert after.existing == history.existing


@given(SEEN)
@example(Seen("ACTIVE", "READY", ()))
def test_nothing_is_waited_for_or_repeated_for_ever_where_something_is_wrong(seen):
    """Seen again and again, trouble or a lost worker comes to an end."""
    history = History(created=True)
    for _ in range(UNREACHABLE_LIMIT + FAILURE_LIMIT + 3):
        action, history = decide(seen, history)
        if action.do in (Do.FAIL, Do.DELETE, Do.FINISH):
            return
    assert not seen.trouble
    lost = not seen.workers or "unreachable" in seen.workers
    assert not lost or (seen.request, seen.vm) != ("ACTIVE", "READY")


@pytest.mark.parametrize(
    ("workers", "started", "do"),
    [
        (("absent", "absent"), False, Do.INSTALL),
        (("ready", "ready"), False, Do.START),
        (("running", "ready"), False, Do.START),  # an earlier start missed one
        (("running", "running"), False, Do.FOLLOW),  # attach
        (("running", "exited 0"), True, Do.FOLLOW),
        (("exited 0", "exited 0"), True, Do.FINISH),
        (("exited 0", "exited 0"), False, Do.START),  # of an earlier launch: ask training itself
        (("exited 1", "exited 1"), False, Do.START),
        (("exited 1", "running"), True, Do.STOP),
        (("exited 1", "exited 137"), True, Do.FAIL),
        ((f"exited {STOPPED}", f"exited {STOPPED}"), True, Do.START),  # saved; goes on
        (("busy other", "ready"), False, Do.FAIL),
        (("unreachable", "running"), True, Do.WAIT),
    ],
)
def test_what_the_workers_do_decides(workers, started, do):
    seen = Seen("ACTIVE", "READY", workers)
    assert decide(seen, History(started=started, created=True))[0].do is do
