"""A chat server on loopback that misbehaves in every way, by a plan drawn from the prompt and the
try.
"""

import asyncio
import json
import random
from collections import Counter
from threading import Thread
from typing import Self

from chat_server import completion

KINDS = (
    "fine",
    "length",
    "odd type",
    "429",
    "500",
    "503",
    "reset",
    "stall",
    "cut",
    "invalid JSON",
    "no choices",
    "web page",
)
WEIGHTS = (60, 3, 3, 1, 5, 1, 4, 0.2, 4, 4, 4, 4)
LASTING = {"refused": "400", "broken": "500"}  # what happens to a prompt with this word


class FaultServer:
    """`with FaultServer() as server`; `requests` and `answers` count by prompt, `kinds` by what
    happened.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        )
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                size = int(head.split("content-length:")[1].split()[0])
                prompt = json.loads(await reader.readexactly(size))["messages"][-1]["content"]
                if not await self._reply(prompt, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):  # the client has gone
            pass
        finally:
            writer.close()

    async def _reply(
        self, prompt: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """True if the connection goes on."""
        self.requests[prompt] += 1
        [kind] = random.Random(f"{prompt} {self.requests[prompt]}").choices(KINDS, WEIGHTS)
        kind = LASTING.get(prompt.split()[0], kind)
        self.kinds[kind] += 1
        status, header, missing = "200 OK", "Content-Type: application/json", 0
        body = json.dumps(
            completion(f"answer to {prompt}", "length" if kind == "length" else "stop")
        )
        match kind:
            case "reset":
                writer.transport.abort()
                return False
            case "stall":
                await reader.read()  # until the client goes
                return False
            case "429":
                status, header, body = "429 Too Many Requests", "Retry-After: 0.01", "slow down"
            case "500" | "503" | "400":
                status, body = f"{kind} Error", json.dumps({"error": f"a {kind}"})
            case "cut":
                missing = 100
            case "invalid JSON":
                body = body[:-9]
            case "no choices":
                body = json.dumps(completion("", choices=[]))
            case "web page":
                header, body = "Content-Type: text/html", "<html>busy</html>"
            case "odd type":
                header = "Content-Type: text/plain"
        self.answers[prompt] += kind in ("fine", "length", "odd type")
        writer.write(
            f"HTTP/1.1 {status}\r\n{header}\r\n"
            f"Content-Length: {len(body) + missing}\r\n\r\n{body}".encode()
        )
        await writer.drain()
        return not missing

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
