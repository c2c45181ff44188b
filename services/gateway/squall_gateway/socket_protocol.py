"""WebSockets with clients: uvicorn's protocol, without what it was opened with: thousands are silent for hours."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class SocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            del self.request, self.response
