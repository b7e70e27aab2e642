"""A scope: whatever is added to it while it ends is returned, or wanted back, in each order of the two threads' steps."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope, on_behalf_of

pytestmark = pytest.mark.unit


class Wrapper:
    """Notes what it is asked to return."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, bool]] = []

    def check_in_if_idle(self, lease: Any, by_force: bool, may_ask_server: bool) -> None:
        self.asked.append((lease, by_force))


class Lease:
    scope: Scope | None = None
    return_requested = False

    def __init__(self, wrapper: Wrapper | None = None) -> None:
        self.borrower = lambda: wrapper


class PausedLeases(set):
    """The leases of a scope, in which another thread stops at one step and goes on when it is told to."""

    def __init__(self, step: str, leases: Iterable[Any] = ()) -> None:
        super().__init__(leases)
        self.step = step
        self.is_there, self.may_go_on = threading.Event(), threading.Event()

    def pause(self, step: str) -> None:
        if step == self.step and threading.current_thread() is not threading.main_thread():
            self.is_there.set()
            assert self.may_go_on.wait(10)

    def add(self, lease: Any) -> None:
        self.pause("before it is added")
        super().add(lease)
        self.pause("when it is added")

    def __bool__(self) -> bool:
        self.pause("before the end looks")
        has_any = len(self) > 0
        self.pause("when the end has looked")
        return has_any

    def copy(self) -> set[Any]:
        self.pause("before the end copies")
        copied = set(self)
        self.pause("when the end has copied")
        return copied


def run_around(step: str, scope: Scope, paused: Any, whole: Any) -> None:
    """Run ``paused`` in a thread up to a step of its own, ``whole`` here, and then the rest of the first."""
    leases = PausedLeases(step, scope.leases)
    scope.leases = leases
    thread = threading.Thread(target=paused)
    thread.start()
    assert leases.is_there.wait(10)
    whole()
    leases.may_go_on.set()
    thread.join(10)
    assert not thread.is_alive()


class TestAnAddBesideAnEnd:
    @pytest.mark.parametrize(("step", "is_asked"), [("before it is added", False), ("when it is added", True)])
    def test_the_end_comes_between_the_steps_of_the_add(self, step, is_asked):
        wrapper, scope = Wrapper(), Scope()
        lease = Lease(wrapper)
        run_around(step, scope, lambda: scope.add(lease), scope.end)
        assert wrapper.asked == ([(lease, True)] if is_asked else [])
        assert lease.return_requested
        assert lease in scope.leases

    @pytest.mark.parametrize(("step", "is_asked"), [("before the end looks", True), ("when the end has looked", False)])
    def test_the_add_comes_between_the_steps_of_the_end(self, step, is_asked):
        wrapper, scope = Wrapper(), Scope()
        lease = Lease(wrapper)
        run_around(step, scope, scope.end, lambda: scope.add(lease))
        assert wrapper.asked == ([(lease, True)] if is_asked else [])
        assert lease.return_requested

    @pytest.mark.parametrize(("step", "is_asked"), [("before the end copies", True), ("when the end has copied", False)])
    def test_the_add_comes_when_the_end_has_found_another(self, step, is_asked):
        first, wrapper, scope = Lease(Wrapper()), Wrapper(), Scope()
        scope.add(first)
        lease = Lease(wrapper)
        run_around(step, scope, scope.end, lambda: scope.add(lease))
        assert first.return_requested
        assert wrapper.asked == ([(lease, True)] if is_asked else [])
        assert lease.return_requested

    @pytest.mark.parametrize("step", ["before it is added", "when it is added"])
    def test_the_end_of_what_it_is_a_part_of(self, step):
        whole = Scope()
        with whole:
            part = Scope()
        lease = Lease(Wrapper())
        run_around(step, part, lambda: part.add(lease), whole.end)
        assert lease.return_requested
        assert lease in whole.leases


class TestItsEnd:
    def test_an_interrupt_does_not_keep_the_rest_from_going_back(self):
        class Interrupted(Wrapper):
            def check_in_if_idle(self, lease: Any, *how: bool) -> None:
                super().check_in_if_idle(lease, *how)
                if len(self.asked) == 1:
                    raise KeyboardInterrupt

        wrapper, scope = Interrupted(), Scope()
        leases = {Lease(wrapper), Lease(wrapper)}
        for lease in leases:
            scope.add(lease)
        with pytest.raises(KeyboardInterrupt):
            scope.end()
        assert {lease for lease, _ in wrapper.asked[1:]} == leases

    def test_it_tells_whether_anything_is_left(self):
        scope, lease = Scope(), Lease(Wrapper())
        assert not scope.end()
        scope.add(lease)
        assert scope.end()
        scope.discard(lease)
        assert not scope.end()

    def test_what_has_no_wrapper_any_more_is_dropped(self):
        scope = Scope()
        scope.add(Lease(None))
        assert not scope.end()

    def test_what_is_released_is_not_taken_by_force_and_the_scope_goes_on(self):
        wrapper, scope = Wrapper(), Scope()
        lease = Lease(wrapper)
        scope.add(lease)
        assert scope.release_idle()
        assert wrapper.asked == [(lease, False)]
        assert not (scope.has_ended or lease.return_requested)


class TestParts:
    def test_a_lease_is_its_scopes_and_that_of_what_it_is_a_part_of(self):
        with Scope(lambda: "the request") as whole:
            part = Scope()
        lease = Lease(Wrapper())
        part.add(lease)
        assert lease.scope is part
        assert whole.leases == part.leases == {lease}
        assert part.format_work() == "the request"
        assert whole.contains(part)
        assert not part.contains(whole)
        part.discard(lease)
        assert not whole.leases

    def test_what_has_ended_has_no_further_parts(self):
        with Scope() as first, Scope() as second:
            second.end()
            third = Scope()
        assert third.parent is first

    def test_nor_has_what_nobody_is_left_to_end(self):
        class Owner:
            pass

        from weakref import ref

        owner = Owner()
        with Scope() as scope:
            scope.owner = ref(owner)
            assert Scope().parent is scope
            del owner
            assert Scope().parent is None

    def test_on_behalf_of_puts_back_what_was(self):
        with Scope() as one:
            other = Scope()
            with on_behalf_of(other):
                assert current_scope() is other
            assert current_scope() is one
        assert current_scope() is None
