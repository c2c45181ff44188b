"""A pipeline of generators: one function streams readings, another one watches the stream and yields alarms, and the
caller prints each alarm while the readings still go on. Nothing waits for the end of anything.

squall run examples/live_alarms.py
"""

import asyncio
from collections.abc import AsyncIterator

import squall

app = squall.App("live-alarms")


@app.function(timeout=60)
async def readings(sensor: int, count: int) -> AsyncIterator[float]:
    """Stands in for a sensor, or for a queue that you subscribe to."""
    for n in range(count):
        await asyncio.sleep(0.005)
        yield round(20 + sensor + (n * 7 % 11) * 0.5, 1)


@app.function(timeout=60)
async def alarms(sensor: int, count: int, limit: float) -> AsyncIterator[tuple[int, float]]:
    """A function that reads from another one while both run."""
    number = 0
    async for value in readings.remote_gen.aio(sensor, count):
        if value > limit:
            yield number, value
        number += 1


@app.local_entrypoint()
def main(count: int = 60, limit: float = 25.0) -> None:
    asyncio.run(watch(count, limit))


async def watch(count: int, limit: float) -> None:
    async def one(sensor: int) -> str:
        found = [alarm async for alarm in alarms.remote_gen.aio(sensor, count, limit)]
        first = "reading {} with {} degrees".format(*found[0]) if found else "none"
        return f"sensor {sensor}: {len(found)} alarms, first: {first}"

    for line in await asyncio.gather(*(one(sensor) for sensor in range(3))):
        print(line)
