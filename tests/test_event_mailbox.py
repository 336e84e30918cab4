"""Events of the engine's thread reach the server's loop in order, those of a step at one wake-up."""

from __future__ import annotations

import asyncio
import threading

from glmtune.generation.batch_requests import TokenEvent
from glmtune.serve.reply_group import EventMailbox


def test_events_of_a_step_wake_the_loop_once(monkeypatch):
    async def run():
        loop, wakes = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: (wakes.append(call), wake(*call)))
        mailbox, queues = EventMailbox(loop), [asyncio.Queue() for _ in range(3)]

        def put_step(step):
            for index, queue in enumerate(queues):
                mailbox.put(queue, index, TokenEvent(str(step), [step]))

        for step in range(4):
            put_step(step)  # before the loop has its turn
        received = [(await queue.get())[1].text for queue in queues for _ in range(4)]
        assert received == ["0", "1", "2", "3"] * 3
        assert len(wakes) == 1
        put_step(4)
        assert [(await queue.get())[0] for queue in queues] == [0, 1, 2]
        assert len(wakes) == 2

    asyncio.run(run())


def test_none_is_lost_between_threads():
    async def run():
        mailbox, queue = EventMailbox(asyncio.get_running_loop()), asyncio.Queue()

        def put_all():
            for number in range(5000):
                mailbox.put(queue, 0, TokenEvent("", [number]))

        thread = threading.Thread(target=put_all)
        thread.start()
        numbers = [(await asyncio.wait_for(queue.get(), 20))[1].token_ids[0] for _ in range(5000)]
        thread.join()
        assert numbers == list(range(5000))

    asyncio.run(run())


def test_a_closed_loop_is_no_error():
    loop = asyncio.new_event_loop()
    mailbox, queue = EventMailbox(loop), asyncio.Queue()
    loop.close()
    mailbox.put(queue, 0, TokenEvent("", [1]))
    mailbox.put(queue, 0, TokenEvent("", [2]))
    assert queue.empty()
