"""Answers in the shapes of the OpenAI, Anthropic and Google APIs: their SDKs work unmodified.

The text is numbered words (``w0 w1 w2 ...``): a reader can tell a lost token from a doubled one.
Length and pace: the API's own maximum, else ``x-lab-tokens``; ``x-lab-rate`` tokens/s;
``x-lab-think`` seconds before the first byte; ``x-lab-pause`` seconds in the middle.
"""

from __future__ import annotations

import array
import asyncio
import base64
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from edged.lab.service import EventStream, HttpError, Service
from edged.lab.serving import Reply, Request

_MAX_TOKENS = 100_000
_EMBEDDING_SIZE = 64


def word(index: int) -> str:
    """The text of token ``index``."""
    return f"w{index} "


class Speech:
    """One answer's words and their pace."""

    def __init__(self, service: Service, request: Request, limit: object) -> None:
        wanted = request.number("tokens", float(service.tokens))
        if isinstance(limit, int | float) and limit > 0 and "x-lab-tokens" not in request.headers:
            wanted = float(limit) if limit < service.tokens else wanted
        self.count = int(min(wanted, _MAX_TOKENS))
        self._rate = request.number("rate", service.token_rate)
        self._think_s = request.number("think", 0.0)
        self._pause_s = request.number("pause", 0.0)
        self.created = int(time.time())

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(word(i) for i in range(self.count))

    async def think(self) -> None:
        """Wait as a model does before its first byte."""
        if self._think_s:
            await asyncio.sleep(self._think_s)

    async def words(self) -> AsyncIterator[str]:
        """Token by token, paced by the clock and not by the sum of sleeps."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for index in range(self.count):
            if self._pause_s and index == self.count // 2:
                await asyncio.sleep(self._pause_s)
                start += self._pause_s
            if self._rate > 0 and (wait := start + index / self._rate - loop.time()) > 0:
                await asyncio.sleep(wait)
            yield word(index)


def _prompt_tokens(document: dict[str, Any]) -> int:
    return max(1, len(repr(document)) // 4)


async def openai_chat(service: Service, request: Request, reply: Reply) -> None:
    """``POST /v1/chat/completions``."""
    document = await service.json(request)
    if not document.get("messages"):
        raise HttpError(400, "messages is missing")
    limit = document.get("max_completion_tokens") or document.get("max_tokens")
    speech = Speech(service, request, limit)
    model = str(document.get("model", "lab"))
    usage = _openai_usage(document, speech)
    base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": speech.created, "model": model}
    await speech.think()
    if not document.get("stream"):
        message = {"role": "assistant", "content": speech.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        answer = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        await service.answer_json(request, reply, answer)
        return

    def chunk(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**base, "object": "chat.completion.chunk", "choices": [choice]}

    stream = EventStream(service, request, reply)
    await stream.send(chunk({"role": "assistant", "content": ""}))
    async for text in speech.words():
        await stream.send(chunk({"content": text}))
    await stream.send(chunk({}, "stop"))
    options = document.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        await stream.send({**chunk({}), "choices": [], "usage": usage})
    await stream.send("[DONE]")
    await stream.end()


def _openai_usage(document: dict[str, Any], speech: Speech) -> dict[str, int]:
    prompt = _prompt_tokens(document)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": speech.count,
        "total_tokens": prompt + speech.count,
    }


async def openai_responses(service: Service, request: Request, reply: Reply) -> None:
    """``POST /v1/responses``."""
    document = await service.json(request)
    speech = Speech(service, request, document.get("max_output_tokens"))
    prompt = _prompt_tokens(document)
    response: dict[str, object] = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": speech.created,
        "model": str(document.get("model", "lab")),
        "error": None,
        "incomplete_details": None,
        "instructions": document.get("instructions"),
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": speech.count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + speech.count,
    }
    part = {"type": "output_text", "text": speech.text, "annotations": []}
    item = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
    done_item = {**item, "status": "completed", "content": [part]}
    completed = {**response, "status": "completed", "output": [done_item], "usage": usage}
    await speech.think()
    if not document.get("stream"):
        await service.answer_json(request, reply, completed)
        return
    stream = EventStream(service, request, reply)
    serial = 0

    async def send(kind: str, **members: object) -> None:
        nonlocal serial
        await stream.send({"type": kind, "sequence_number": serial, **members}, kind)
        serial += 1

    begun = {**response, "status": "in_progress", "output": []}
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    await send("response.created", response=begun)
    await send("response.in_progress", response=begun)
    opened = {**item, "status": "in_progress", "content": []}
    await send("response.output_item.added", output_index=0, item=opened)
    await send("response.content_part.added", **where, part={**part, "text": ""})
    async for text in speech.words():
        await send("response.output_text.delta", **where, delta=text, logprobs=[])
    await send("response.output_text.done", **where, text=speech.text, logprobs=[])
    await send("response.content_part.done", **where, part=part)
    await send("response.output_item.done", output_index=0, item=done_item)
    await send("response.completed", response=completed)
    await stream.end()


async def openai_models(service: Service, request: Request, reply: Reply) -> None:
    """``GET /v1/models``."""
    models = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "edged-lab"}
        for name in ("lab", "lab-large")
    ]
    await service.answer_json(request, reply, {"object": "list", "data": models})


async def openai_embeddings(service: Service, request: Request, reply: Reply) -> None:
    """``POST /v1/embeddings``; the vector follows from the text's SHA-256."""
    document = await service.json(request)
    inputs = document.get("input")
    texts = inputs if isinstance(inputs, list) else [inputs]
    data = []
    for index, text in enumerate(texts):
        digest = hashlib.sha256(str(text).encode()).digest()
        floats = array.array("f", [b / 128 - 1 for b in digest * (_EMBEDDING_SIZE // 32)])
        vector: object = list(floats)
        if document.get("encoding_format") == "base64":
            vector = base64.b64encode(floats.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    prompt = _prompt_tokens(document)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    model = document.get("model", "lab")
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    await service.answer_json(request, reply, answer)


async def anthropic_messages(service: Service, request: Request, reply: Reply) -> None:
    """``POST /v1/messages``."""
    document = await service.json(request)
    if not document.get("messages"):
        raise HttpError(400, "messages is missing")
    speech = Speech(service, request, document.get("max_tokens"))
    prompt = _prompt_tokens(document)
    message: dict[str, object] = {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": str(document.get("model", "lab")),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": 1},
    }
    await speech.think()
    if not document.get("stream"):
        answer = {
            **message,
            "content": [{"type": "text", "text": speech.text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": prompt, "output_tokens": speech.count},
        }
        await service.answer_json(request, reply, answer)
        return
    stream = EventStream(service, request, reply)

    async def send(kind: str, **members: object) -> None:
        await stream.send({"type": kind, **members}, kind)

    await send("message_start", message=message)
    await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
    await send("ping")
    async for text in speech.words():
        await send("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    await send("content_block_stop", index=0)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    await send("message_delta", delta=delta, usage={"output_tokens": speech.count})
    await send("message_stop")
    await stream.end()


async def google_generate(service: Service, request: Request, reply: Reply) -> None:
    """``POST /v1beta/models/X:generateContent`` and ``:streamGenerateContent?alt=sse``."""
    document = await service.json(request)
    if not document.get("contents"):
        raise HttpError(400, "contents is missing")
    options = document.get("generationConfig")
    limit = options.get("maxOutputTokens") if isinstance(options, dict) else None
    speech = Speech(service, request, limit)
    model, _, verb = request.path.rpartition("/")[2].partition(":")
    prompt = _prompt_tokens(document)

    def piece(text: str, done: bool) -> dict[str, object]:
        candidate: dict[str, object] = {
            "content": {"parts": [{"text": text}], "role": "model"},
            "index": 0,
        }
        if done:
            candidate["finishReason"] = "STOP"
        usage = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": speech.count,
            "totalTokenCount": prompt + speech.count,
        }
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}

    await speech.think()
    if verb == "generateContent":
        await service.answer_json(request, reply, piece(speech.text, True))
        return
    if verb != "streamGenerateContent" or request.query.get("alt") != "sse":
        raise HttpError(404, "generateContent, or streamGenerateContent with alt=sse")
    stream = EventStream(service, request, reply)
    async for text in speech.words():
        await stream.send(piece(text, False))
    await stream.send(piece("", True))
    await stream.end()
