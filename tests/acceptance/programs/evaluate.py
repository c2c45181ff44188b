"""An eval fan-out: 2,000 inputs over .map(), and a check that each result came once and in order."""

import time
from pathlib import Path

import squall

app = squall.App("evaluate")
INPUTS = 2000


@app.function(timeout=60, max_containers=4)
def judge(folder, number):
    with open(f"{folder}/effects", "a") as file:
        file.write(f"{number}\n")
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return number, number % 7


@app.local_entrypoint()
def main(folder: str):
    received = []
    for answer in judge.map([folder] * INPUTS, range(INPUTS)):
        received.append(answer)
        if len(received) % 500 == 0:
            print("received", len(received), flush=True)
    executed = {int(line) for line in Path(folder, "effects").read_text().splitlines()}
    if received == [(n, n % 7) for n in range(INPUTS)] and executed == set(range(INPUTS)):
        print(f"{INPUTS} in order, none lost, none repeated")
