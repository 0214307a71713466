"""The endpoints as other languages find them: by OpenAPI, and as MCP tools with MCP's own client."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers.clips import frame_count, write_clip
from helpers.waiting import PATIENCE
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client

import app

ENDPOINTS = ("translate", "styles", "health")


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 10)


def frames_in(data: bytes, folder: Path) -> int:
    (folder / "result.mp4").write_bytes(data)
    return frame_count(folder / "result.mp4")


def test_a_call_built_from_the_openapi_document_alone_works(address, clip, tmp_path):
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        paths = client.get("/gradio_api/openapi.json").json()["paths"]
        (upload,) = (path for path in paths if path.endswith("/upload"))
        (field,) = properties(paths[upload], "multipart/form-data")
        (uploaded,) = client.post(upload, files={field: clip.open("rb")}).json()
        calls = {name: next(path for path in paths if path.endswith(f"/{name}")) for name in ENDPOINTS}
        for path in calls.values():
            assert len(paths[path]["post"]["description"]) > 80

        def call(name: str, **values: object) -> object:
            assert set(values) <= set(properties(paths[calls[name]]))
            event = client.post(calls[name], json=values).json()["event_id"]
            (result,) = (path for path in paths if path.endswith(f"/{name}/{{event_id}}"))
            *_, last = client.get(result.format(event_id=event)).text.strip().split("\n\n")
            kind, data = (line.partition(": ")[2] for line in last.splitlines())
            assert kind == "complete", last
            return json.loads(data)[0]

        assert call("styles")[0] == {"name": "pencil", "title": "Pencil", "needs": ""}
        assert call("health")["device"] == "cpu"
        file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
        result = call("translate", clip=file, style="pencil", prompt="a ball", steps=1, end=0.2)
        assert frames_in(client.get(result["url"]).content, tmp_path) == 5


def properties(operations: dict, kind: str = "application/json") -> dict:
    """Return the properties of a request's body in an OpenAPI document."""
    return operations["post"]["requestBody"]["content"][kind]["schema"]["properties"]


@pytest.fixture
def mcp_address(engine) -> Iterator[str]:
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1", mcp_server=True)
    yield f"{demo.local_url}gradio_api/mcp/"
    demo.close()


def test_an_mcp_client_lists_the_tools_and_translates_a_clip(mcp_address, clip, tmp_path):
    clip_url = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()

    async def use() -> tuple[dict[str, types.Tool], types.CallToolResult, types.CallToolResult]:
        async with (
            streamable_http_client(mcp_address) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            arguments = {"clip": clip_url, "style": "pencil", "prompt": "a ball", "steps": 1}
            done = await session.call_tool("translate", arguments)
            return tools, done, await session.call_tool("translate", arguments | {"style": "no such style"})

    tools, done, failed = asyncio.run(asyncio.wait_for(use(), PATIENCE))
    assert set(tools) == set(ENDPOINTS)
    assert "Translate a video clip" in str(tools["translate"].description)
    assert "0 is the end of the clip" in json.dumps(tools["translate"].inputSchema)
    assert not done.isError, done
    result = httpx.get(done.content[0].text)
    assert frames_in(result.content, tmp_path) == 10
    assert failed.isError and "pencil" in failed.content[0].text
