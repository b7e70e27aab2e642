"""The queue of slots, its back-off and what an interrupt may do to them: without a server, each interleaving forced."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from django_mysqlpool.mysqlpool.pool import lost_slots
from django_mysqlpool.mysqlpool.pool import slots as slots_module
from django_mysqlpool.mysqlpool.pool.idle_slots import IdleSlots
from django_mysqlpool.mysqlpool.pool.lost_slots import LostSlots
from django_mysqlpool.mysqlpool.pool.slots import SlotQueue
from django_mysqlpool.mysqlpool.pool.waiters import QueueFull, SlotRequest, SlotTimeout, Waiter

pytestmark = pytest.mark.unit


class Slot:
    dbapi_connection: Any = None


class Interrupt(BaseException):
    """As a signal's handler raises one."""


def queue(cap: int | None = 2, **options: Any) -> SlotQueue[Slot]:
    return SlotQueue(Slot, cap, **options)


def connected(slots: SlotQueue[Slot], number: int = 1) -> list[Slot]:
    """Have so many slots connected, and idle."""
    taken = [slots.acquire(SlotRequest()) for _ in range(number)]
    for slot in taken:
        slot.dbapi_connection = object()
        slots.release(slot)
    return taken


def soon() -> SlotRequest:
    """Served at once or not at all."""
    return SlotRequest(time.monotonic())


class Queued:
    """Threads that wait; each is known to stand in the queue when ``add()`` returns."""

    def __init__(self, slots: SlotQueue[Slot]) -> None:
        self.slots = slots
        self.executor = ThreadPoolExecutor(4)
        self.enqueued = threading.Semaphore(0)
        enqueue = slots._enqueue

        def enqueue_and_tell(request: SlotRequest) -> Waiter[Slot]:
            waiter = enqueue(request)
            self.enqueued.release()
            return waiter

        slots._enqueue = enqueue_and_tell  # type: ignore[method-assign]

    def add(self, request: SlotRequest | None = None) -> Future[Slot]:
        future = self.executor.submit(self.slots.acquire, request or SlotRequest())
        assert self.enqueued.acquire(timeout=30)
        return future


@pytest.fixture
def slots() -> SlotQueue[Slot]:
    return queue(1)


@pytest.fixture
def queued(slots) -> Iterator[Queued]:
    made = Queued(slots)
    with made.executor:
        yield made


class TestAcquiring:
    def test_no_more_than_the_cap(self):
        slots = queue(2)
        taken = [slots.acquire(SlotRequest()) for _ in range(2)]
        with pytest.raises(SlotTimeout):
            slots.acquire(soon())
        slots.release(taken.pop())
        assert slots.acquire(soon())

    def test_without_a_cap(self):
        slots = queue(None)
        taken = {slots.acquire(soon()) for _ in range(100)}
        assert len(taken) == 100
        for slot in taken:
            slots.release(slot)
        assert not slots.store.absent()

    def test_an_idle_slot_before_an_empty_one(self):
        slots = queue(2)
        (idle,) = connected(slots)
        assert slots.acquire(soon()) is idle

    @pytest.mark.parametrize("lifo", [True, False])
    def test_which_idle_slot_is_next(self, lifo):
        slots = queue(2, lifo=lifo)
        first, last = connected(slots, 2)
        assert slots.acquire_idle() is (last if lifo else first)

    def test_a_new_one_or_none(self):
        slots = queue(2)
        (idle,) = connected(slots)
        request = soon()
        request.needs_new = True
        assert slots.acquire(request) is not idle
        with pytest.raises(SlotTimeout):
            slots.acquire(request)

    def test_more_than_max_waiting_are_refused(self):
        slots = queue(1, max_waiting=1)
        slot = slots.acquire(soon())
        waiting = Queued(slots)
        with waiting.executor:
            future = waiting.add()
            with pytest.raises(QueueFull, match="1"):
                slots.acquire(soon())
            slots.release(slot)
            assert future.result(30) is slot


class TestWaiting:
    def test_in_the_order_of_their_coming(self, slots, queued):
        slot = slots.acquire(soon())
        first, second = queued.add(), queued.add()
        slots.release(slot)
        assert first.result(30) is slot
        assert not second.done()
        slots.release(slot)
        assert second.result(30) is slot

    def test_one_that_the_server_refused_is_first_again(self, slots, queued):
        slot = slots.acquire(soon())
        other, again = queued.add(), SlotRequest()
        again.is_first = True
        mine = queued.add(again)
        slots.release(slot)
        assert mine.result(30) is slot
        slots.release(slot)
        assert other.result(30) is slot

    @pytest.mark.parametrize("fairness_window", [0, 60], ids=["without a fairness window", "beyond it"])
    def test_a_running_thread_does_not_barge(self, slots, queued, fairness_window):
        slots.fairness_window = fairness_window
        (slot,) = connected(slots)
        assert slots.acquire_idle() is slot
        waiting = queued.add()
        with slots.lock:
            slots._waiters[0].enqueued_at -= 60
            slots.release(slot)
            assert slots.acquire_idle() is None
        assert waiting.result(30) is slot

    def test_within_a_fairness_window_it_does(self, slots, queued):
        slots.fairness_window = 3600
        (slot,) = connected(slots)
        slots.acquire_idle()
        waiting = queued.add()
        with slots.lock:
            slots.release(slot)
            assert slots.acquire_idle() is slot, "the waiter was woken, and could not claim it yet"
        slots.release(slot)
        assert waiting.result(30) is slot

    def test_a_slot_that_is_released_while_a_thread_enqueues_is_seen(self, slots, monkeypatch):
        """It is released without the lock, to a queue where nobody stands yet: nobody must go to sleep beside it."""
        (slot,) = connected(slots)
        assert slots.acquire_idle() is slot
        enqueue = slots._enqueue

        def enqueue_late(request: SlotRequest) -> Waiter[Slot]:
            slots.release(slot)
            return enqueue(request)

        monkeypatch.setattr(slots, "_enqueue", enqueue_late)
        monkeypatch.setattr(Waiter, "sleep", lambda *_: pytest.fail("it sleeps"))
        assert slots.acquire(SlotRequest()) is slot

    def test_who_gives_up_passes_its_waking_on(self, slots, queued):
        slots.fairness_window = 3600
        (slot,) = connected(slots)
        slots.acquire_idle()
        first, second = queued.add(), queued.add()
        with slots.lock:
            slots.release(slot)
            waiter, other = slots._waiters
            assert (waiter.is_woken, other.is_woken) == (True, False)
            assert slots._dequeue(waiter)
            assert other.is_woken
            waiter.error = LookupError("given up")
        assert second.result(30) is slot
        with pytest.raises(LookupError):
            first.result(30)

    def test_a_slot_of_the_last_moment_is_taken(self, slots, monkeypatch):
        """It is handed over when the time is over, and the waiter is about to leave the queue."""
        (slot,) = connected(slots)
        slots.acquire_idle()
        dequeue = slots._dequeue

        def dequeue_late(waiter: Waiter[Slot]) -> bool:
            slots.release(slot)
            return dequeue(waiter)

        monkeypatch.setattr(slots, "_dequeue", dequeue_late)
        assert slots.acquire(soon()) is slot

    @pytest.mark.parametrize("is_handed_over", [True, False])
    def test_an_interrupt_loses_no_slot(self, slots, monkeypatch, is_handed_over):
        (slot,) = connected(slots)
        slots.acquire_idle()

        def sleep(waiter: Waiter[Slot], seconds: float) -> bool:
            if is_handed_over:
                slots.release(slot)
            raise Interrupt

        monkeypatch.setattr(Waiter, "sleep", sleep)
        with pytest.raises(Interrupt):
            slots.acquire(SlotRequest())
        assert not slots.waiting
        if not is_handed_over:
            slots.release(slot)
        assert slots.acquire_idle() is slot


class TestAttempts:
    def test_one_at_a_time_after_a_failure(self):
        slots = queue(3)
        failing = slots.acquire(soon())
        slots.connect_failed(OSError("down"), 0)
        slots.release(failing)
        attempt = slots.acquire(soon())
        with pytest.raises(SlotTimeout):
            slots.acquire(soon())
        slots.release(attempt)  # it has ended, however
        assert slots.acquire(soon())

    def test_a_success_lets_all_waiters_try(self):
        slots = queue(2)
        slots.connect_failed(OSError("down"), 0)
        slots.acquire(soon())
        waiting = Queued(slots)
        with waiting.executor:
            future = waiting.add()
            slots.connect_succeeded()
            assert future.result(30)

    def test_waiters_raise_the_error_of_an_attempt(self, slots, queued):
        slots.acquire(soon())
        old = queued.add()
        slots._waiters[0].enqueued_at -= 10
        young = queued.add()
        error = OSError("down")
        slots.connect_failed(error, 10)
        with pytest.raises(OSError, match="down") as caught:
            old.result(30)
        assert caught.value is not error, "each thread raises one of its own"
        assert not young.done()
        slots.connect_failed(error, 0)
        with pytest.raises(OSError, match="down"):
            young.result(30)


class TestLostSlots:
    @pytest.fixture
    def now(self, monkeypatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(lost_slots.time, "monotonic", lambda: now[0])
        return now

    @staticmethod
    def find(
        lost: LostSlots[Slot], in_use: set[Slot] | None = None, mark: object = 0, in_transit: set[object] | None = None
    ) -> list[Slot]:
        return lost.find(lambda slot: slot in (in_use or set()), lambda _: mark, in_transit or set())

    def test_none_that_a_thread_has_in_hand_however_long(self, now):
        """As one that does not run for an hour, on a machine that is busy with other things."""
        slots = queue(1)
        lost = LostSlots(slots)
        (slot,) = connected(slots)
        assert slots.acquire_idle() is slot
        assert not self.find(lost, in_transit={"a thread"})
        now[0] += 3600
        assert not self.find(lost, in_transit={"a thread"})
        assert self.find(lost) == [slot]

    def test_one_whose_thread_has_finished(self, now):
        slots = queue(1)
        lost = LostSlots(slots)
        request = SlotRequest()
        slot = slots.acquire(request)
        assert not self.find(lost)
        request.is_finished = True
        assert not self.find(lost), "it may be changing hands"
        assert slots.has_missed
        now[0] += 1
        assert self.find(lost) == [slot]
        slots.replace(slot)
        assert slots.acquire(soon()) is not slot
        slots.release(slot)  # after all
        with pytest.raises(SlotTimeout):
            slots.acquire(soon())

    def test_one_that_was_taken_for_a_thread_which_waits_on(self, now, slots, queued, monkeypatch):
        """An interrupt has come to another thread between the take and the handover."""
        (slot,) = connected(slots)
        slots.acquire_idle()
        future = queued.add(SlotRequest(math.inf))
        lost = LostSlots(slots)
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(slots_module, "ref", lambda _: (_ for _ in ()).throw(Interrupt()))
            slots.release(slot)
        assert not self.find(lost)
        now[0] += 1
        assert self.find(lost) == [slot]
        slots.replace(slot)
        assert future.result(10) is not slot

    def test_one_that_was_used_meanwhile_is_not(self, now):
        slots = queue(1)
        lost = LostSlots(slots)
        slots.acquire(SlotRequest())
        assert not self.find(lost, mark=1)
        now[0] += 1
        assert not self.find(lost, mark=2)

    def test_nor_one_whose_connection_somebody_has(self, now):
        slots = queue(1)
        lost = LostSlots(slots)
        slot = slots.acquire(SlotRequest())
        for _ in range(3):
            assert not self.find(lost, {slot})
            now[0] += 1

    def test_an_interrupt_while_one_is_replaced(self, now, monkeypatch):
        """Between the two steps of a replacement."""
        slots = queue(1)
        lost = LostSlots(slots)
        slot = slots.acquire(SlotRequest())
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(slots.store, "_make_slot", lambda: (_ for _ in ()).throw(Interrupt()))
            slots.replace(slot)
        assert not self.find(lost)
        assert slots.acquire(soon())

    def test_an_unlimited_queue_forgets_it(self, now):
        slots = queue(None)
        slot = slots.acquire(SlotRequest())
        lost = LostSlots(slots)
        self.find(lost)
        now[0] += 1
        assert self.find(lost) == [slot]
        slots.replace(slot)
        assert not slots.store.absent()


class TestResizing:
    def test_a_lost_slot_is_one_of_those_that_have_to_go(self):
        slots = queue(2)
        taken = [slots.acquire(SlotRequest()) for _ in range(2)]
        slots.resize(1)
        assert slots.store.surplus == 1
        slots.replace(taken[0])
        assert slots.store.surplus == 0
        slots.release(taken[1])
        assert slots.store.number == 1


class TestMaintenance:
    """A slot whose connection is only looked after is not in use: a thread waits for it a little, whatever its deadline."""

    @pytest.mark.parametrize("max_waiting", [None, 0])
    def test_it_refuses_nobody(self, max_waiting):
        slots = queue(1, max_waiting=max_waiting)
        connected(slots)
        (item,) = slots.store.idle_slots()
        probing = SlotRequest(is_maintenance=True)
        assert slots.remove_idle(item, probing)
        waiting = Queued(slots)
        with waiting.executor:
            future = waiting.add(soon())
            probing.is_finished = True
            slots.put_back_first(item)
            assert future.result(30) is item[0]

    def test_but_not_for_long(self, monkeypatch):
        monkeypatch.setattr(slots_module, "MAINTENANCE_GRACE", 0.0)
        slots = queue(1)
        connected(slots)
        probing = SlotRequest(is_maintenance=True)
        assert slots.remove_idle(slots.store.idle_slots()[0], probing)
        with pytest.raises(SlotTimeout):
            slots.acquire(soon())

    def test_one_that_was_taken_meanwhile(self, slots):
        connected(slots)
        (item,) = slots.store.idle_slots()
        slots.acquire_idle()
        assert not slots.remove_idle(item, SlotRequest(is_maintenance=True))

    @pytest.mark.parametrize(
        "work",
        [
            lambda idle: idle.with_longest_idle(lambda _: None),
            lambda idle: idle.with_longest_idle(lambda _: "lost"),
            lambda idle: idle.close_all("pool_closed"),
        ],
        ids=["probed", "probed in vain", "closed"],
    )
    def test_until_the_slot_is_back(self, work):
        class ClosableSlot(Slot):
            def close(self) -> None:
                self.dbapi_connection = None

        slots = SlotQueue(ClosableSlot, 1)
        connected(slots)
        in_maintenance = []

        def tell(*_: object) -> None:
            in_maintenance.append(slots.store.in_maintenance())

        for name in ("put_back_first", "release"):
            method = getattr(slots, name)
            setattr(slots, name, lambda item, method=method: (tell(), method(item)))
        work(IdleSlots(slots, lambda connection, reason: None))
        assert in_maintenance == [1]
        assert slots.store.in_maintenance() == 0
        assert slots.store.number == 1
