"""A chat over WebSockets: `squall deploy examples/web_chat.py`, then connect to `<address>/room`.

Everybody in a room is in the same container: one container, many connections."""

from typing import Any

import squall

app = squall.App("chat")


@app.function(image=squall.Image.debian_slim().pip_install("fastapi"), max_containers=1, timeout=3600)
@squall.concurrent(max_inputs=1000)
@squall.asgi_app()
def chat() -> Any:
    from fastapi import FastAPI, WebSocket, WebSocketDisconnect

    web = FastAPI()
    present: set[WebSocket] = set()

    async def room(socket: WebSocket) -> None:
        await socket.accept()
        present.add(socket)
        try:
            while True:
                text = await socket.receive_text()
                for other in list(present):
                    await other.send_text(text)
        except WebSocketDisconnect:
            present.discard(socket)

    web.add_api_websocket_route("/room", room)
    return web
