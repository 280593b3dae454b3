"""Unmodified SDKs and curl against the lab: through the gateway, and through CONNECT."""

import itertools
import json
import subprocess
import time

import pytest

from tests.live.conftest import need

anthropic = pytest.importorskip("anthropic")
genai = pytest.importorskip("google.genai")
openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(params=["gateway", "connect"])
def way(request, edged_over_lab, lab, monkeypatch):
    """The base URL; the SDKs are told nothing else but by their environment."""
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    if request.param == "gateway":
        return f"{edged_over_lab.url}/llm"
    monkeypatch.setenv("HTTPS_PROXY", edged_over_lab.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.lab.ca_file))
    port = next(iter(lab.lab.endpoints.values())).port
    return f"https://api.lab.test:{port}"


@pytest.fixture(scope="module", autouse=True)
def unhurried(lab):
    """Tokens so far apart that a busy machine still sees them one by one."""
    for endpoint in lab.lab.endpoints.values():
        endpoint.service.token_rate, endpoint.service.tokens = 15.0, 20


def spread(times):
    """Events came one by one: the gaps between them are not one burst."""
    return sum(later - earlier > 0.005 for earlier, later in itertools.pairwise(times))


def test_openai(way):
    client = openai.OpenAI(api_key="sk-1", base_url=way + "/v1")
    whole = client.chat.completions.create(model="lab-1", messages=MESSAGES)
    assert whole.choices[0].message.content
    times, text = [], ""
    for chunk in client.chat.completions.create(model="lab-1", messages=MESSAGES, stream=True):
        times.append(time.monotonic())
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert text
    assert spread(times) > 10
    assert [model.id for model in client.models.list()]
    response = client.responses.create(model="lab-1", input="hello")
    assert response.output_text


def test_anthropic(way):
    client = anthropic.Anthropic(api_key="sk-2", base_url=way)
    whole = client.messages.create(model="lab-1", max_tokens=64, messages=MESSAGES)
    assert whole.content[0].text
    times = []
    with client.messages.stream(model="lab-1", max_tokens=64, messages=MESSAGES) as stream:
        for _ in stream.text_stream:
            times.append(time.monotonic())
        final = stream.get_final_message()
    assert final.content[0].text
    assert spread(times) > 10


def test_google_genai(way):
    client = genai.Client(api_key="k3", http_options=genai.types.HttpOptions(base_url=way))
    whole = client.models.generate_content(model="lab-1", contents="hello")
    assert whole.text
    times = []
    for chunk in client.models.generate_content_stream(model="lab-1", contents="hello"):
        times.append(time.monotonic())
        assert chunk.candidates
    assert spread(times) > 5


def curl(*arguments):
    done = subprocess.run(
        [need("curl"), "-sS", "--max-time", "20", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_curl_streams_through_the_gateway(edged_over_lab):
    url = f"{edged_over_lab.url}/llm/sse?n=20&rate=50"
    out = curl("-N", url)
    assert out.count("data:") >= 20


def test_curl_through_connect(edged_over_lab, lab):
    endpoint = lab.lab.endpoints["tokyo"]
    out = curl(
        *("--proxy", edged_over_lab.url, "--cacert", str(lab.lab.ca_file)),
        f"https://api.lab.test:{endpoint.port}/echo",
    )
    assert json.loads(out)["method"] == "GET"


def test_curl_with_absolute_form(edged_over_lab):
    out = curl("--proxy", edged_over_lab.url, "http://api.lab.test/echo")
    assert json.loads(out)["method"] == "GET"


def test_curl_http2_prior_knowledge(edged_over_lab):
    out = curl("--http2-prior-knowledge", "-w", "%{http_version}", f"{edged_over_lab.url}/llm/echo")
    assert out.endswith("2")
    assert json.loads(out[:-1])["method"] == "GET"


def test_a_large_upload_arrives_whole(edged_over_lab, tmp_path):
    import hashlib
    import os

    body = os.urandom(3 << 20)
    (tmp_path / "body").write_bytes(body)
    out = curl("-T", str(tmp_path / "body"), f"{edged_over_lab.url}/llm/upload")
    assert json.loads(out)["sha256"] == hashlib.sha256(body).hexdigest()


def test_no_secret_reaches_a_log(edged_over_lab):
    curl("-H", "authorization: Bearer sk-SECRET", f"{edged_over_lab.url}/llm/echo?key=sk-SECRET")
    time.sleep(0.5)
    logs = edged_over_lab.log
    for file in edged_over_lab.directory.glob("*.log"):
        logs += file.read_text()
    assert "/echo" in logs
    assert "SECRET" not in logs


def test_every_answer_can_be_explained(edged_over_lab):
    out = curl("-i", f"{edged_over_lab.url}/llm/echo")
    line = next(x for x in out.splitlines() if x.lower().startswith("edged-request-id:"))
    answer = json.load(edged_over_lab.get("/why/" + line.partition(":")[2].strip()))
    assert "cn2" in json.dumps(answer)
