"""Containers that use a dict and a queue."""

import os

import squall

app = squall.App("shared-state")


@app.function(max_containers=3)
def claim(state: squall.Dict, name: int) -> bool:
    return state.put("lock", name, skip_if_exists=True)


@app.function(max_containers=3)
def take(items: squall.Queue, number: int) -> list[int]:
    return [item for _ in range(number) if (item := items.get(block=False, partition="p")) is not None]


@app.function()
async def in_a_loop(state: squall.Dict, items: squall.Queue) -> list[object]:
    await state.put.aio("k", os.getpid())
    await items.put.aio("first")
    return [await state.get.aio("k") == os.getpid(), await items.get.aio(), [key async for key in state.keys.aio()]]
