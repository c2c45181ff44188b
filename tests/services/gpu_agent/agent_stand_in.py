"""Plays the agent in a process of its own, to be killed: starts containers of each kind, prints all pids, waits."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from squall.spec import CodeRef, FunctionSpec
from squall_gpu_agent.backend import ContainerRequest, InputRequest
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings

SOURCE = """
import os, subprocess, time
def f():
    plain = subprocess.Popen(["sleep", "600"])
    daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
    orphan = int(subprocess.check_output(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]))
    print(os.getpid(), plain.pid, daemon.pid, orphan, flush=True)
    time.sleep(600)
"""


async def main(folder: Path, images: Path) -> None:
    code = folder / "code" / "root"
    code.mkdir(parents=True)
    (code / "app.py").write_text(SOURCE)
    backend = ProcessBackend(ProcessSettings(data_dir=folder / "data", images_dir=images))
    pids: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        for number, use_template in enumerate((True, True, False)):
            spec = FunctionSpec(name="f", code=CodeRef("sha", "app", "f"), use_template=use_template)
            container = await backend.start(
                ContainerRequest(
                    container_id=f"ct-{number}", app_id="ap-1", function_id="fu-1", spec=spec, code_dir=code.parent
                ),
                lambda log: pids.extend(map(int, log.text.split())),
            )
            pids.append(container.pid)
            tasks.create_task(container.run(InputRequest(call=f"fc-{number}", payload=b"\x80\x04)}\x86.")))
        template = backend._templates.all()[0]
        warden = await backend._starter.warden()
        pids += [template.pid, warden.pid, backend._starter._bare.all()[0].pid]
        while len(pids) < 3 + 3 + 3 * 4:  # noqa: ASYNC110  # a program of its own, without the tests' helpers
            await asyncio.sleep(0.01)  # a program of its own, without the tests' helpers
        print(json.dumps(sorted(set(pids))), flush=True)


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
