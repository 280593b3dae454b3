"""The unmodified SDKs against the origin, over h1 and h2, streaming and not."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import pytest

from edged.lab import chat
from edged.lab.certs import make_certificates
from edged.lab.origin import Origin

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
genai = pytest.importorskip("google.genai")

ASK = [{"role": "user", "content": "Say something."}]
WORDS = "".join(chat.word(i) for i in range(8))
LIMIT = {"x-lab-tokens": "8", "x-lab-rate": "200"}


@contextlib.asynccontextmanager
async def client_of(tmp_path, version, client_class=httpx.AsyncClient):
    certificates = make_certificates(tmp_path, ["127.0.0.1"])
    origin = Origin(certificates, h3=False)
    await origin.start()
    http = client_class(
        verify=certificates.client_context(), http2=version == "2", http1=version == "1.1"
    )
    async with http:
        yield f"https://127.0.0.1:{origin.port}", http
    await origin.stop()


def both(test):
    return pytest.mark.parametrize("version", ["1.1", "2"])(test)


@both
def test_openai(tmp_path, version):
    async def main():
        sdk = openai.DefaultAsyncHttpxClient
        async with client_of(tmp_path, version, sdk) as (base, http):
            client = openai.AsyncOpenAI(
                base_url=f"{base}/v1", api_key="x", http_client=http, default_headers=LIMIT
            )
            answer = await client.chat.completions.create(model="lab", messages=ASK)
            assert answer.choices[0].message.content == WORDS
            assert answer.usage.completion_tokens == 8
            stream = await client.chat.completions.create(
                model="lab", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == WORDS
            assert chunks[-1].usage.completion_tokens == 8
            response = await client.responses.create(model="lab", input="hi")
            assert response.output_text == WORDS
            async with client.responses.stream(model="lab", input="hi") as events:
                deltas = [e.delta async for e in events if e.type == "response.output_text.delta"]
                assert (await events.get_final_response()).output_text == WORDS
            assert "".join(deltas) == WORDS
            assert [m.id async for m in client.models.list()] == ["lab", "lab-large"]
            vectors = await client.embeddings.create(model="lab", input=["a", "b"])
            assert [len(v.embedding) for v in vectors.data] == [64, 64]
            with pytest.raises(openai.BadRequestError, match="messages is missing"):
                await client.chat.completions.create(model="lab", messages=[])

    asyncio.run(main())


@both
def test_anthropic(tmp_path, version):
    async def main():
        sdk = anthropic.DefaultAsyncHttpxClient
        async with client_of(tmp_path, version, sdk) as (base, http):
            client = anthropic.AsyncAnthropic(
                base_url=base, api_key="x", http_client=http, default_headers=LIMIT
            )
            answer = await client.messages.create(model="lab", max_tokens=8, messages=ASK)
            assert answer.content[0].text == WORDS
            assert answer.stop_reason == "end_turn"
            async with client.messages.stream(model="lab", max_tokens=8, messages=ASK) as stream:
                text = [t async for t in stream.text_stream]
                final = await stream.get_final_message()
            assert "".join(text) == WORDS
            assert len(text) == 8
            assert final.usage.output_tokens == 8

    asyncio.run(main())


@both
def test_google(tmp_path, version):
    async def main():
        async with client_of(tmp_path, version) as (base, http):
            options = genai.types.HttpOptions(
                base_url=base, httpx_async_client=http, headers=LIMIT, api_version="v1beta"
            )
            client = genai.Client(api_key="x", http_options=options)
            answer = await client.aio.models.generate_content(model="lab", contents="hi")
            assert answer.text == WORDS
            stream = await client.aio.models.generate_content_stream(model="lab", contents="hi")
            pieces = [piece.text async for piece in stream]
            assert "".join(p for p in pieces if p) == WORDS

    asyncio.run(main())


def test_length_pace_and_thinking_are_the_requests(tmp_path):
    async def main():
        async with client_of(tmp_path, "1.1") as (base, http):
            headers = {"x-lab-tokens": "4", "x-lab-rate": "20", "x-lab-think": "0.1"}
            document = {"model": "lab", "messages": ASK, "stream": True}
            times = []
            start = time.monotonic()
            url = f"{base}/v1/chat/completions"
            async with http.stream("POST", url, json=document, headers=headers) as response:
                head = time.monotonic() - start
                async for line in response.aiter_lines():
                    if '"content":"w' in line:
                        times.append(time.monotonic() - start)
            assert head >= 0.1
            assert len(times) == 4
            assert times[-1] - times[0] > 0.1
            short = {"model": "lab", "messages": ASK, "max_tokens": 3}
            answer = (await http.post(url, json=short)).json()
            assert answer["choices"][0]["message"]["content"] == "w0 w1 w2 "

    asyncio.run(main())
