"""anchor watch: the page follows a run, and answers nobody but this machine."""

import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from anchor_robust import runs
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.watch import HEADERS, server, state

HOSTILE = '<script>alert("x")</script> & \U0001f642 ' + "long" * 50


def point(epoch: int) -> dict[str, Any]:
    return {"step": 10 * epoch, "epoch": epoch, "lr": 0.1, "loss": 2.0 / epoch, "images_per_s": 100.0, "seconds": 9.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    recipe = {"name": HOSTILE, "optimise": {"epochs": 3}}
    (directory / runs.RECIPE).write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    (tmp_path / "secret").write_text("secret")
    return directory


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        """The path goes out as it is: no library tidies it up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True)
            if host != "":
                connection.putheader("Host", host or f"127.0.0.1:{self.port}")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        status, content, headers = self.ask("/state.json")
        assert status == 200
        assert headers["Content-Type"].startswith("application/json")
        return json.loads(content)


@contextmanager
def watching(run: Path) -> Iterator[Client]:
    with server(run, 0) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(serving.server_port)
        finally:
            serving.shutdown()
            thread.join()


def test_the_state_follows_the_metrics(run: Path) -> None:
    with watching(run) as client:
        begun = client.state()
        assert (begun["name"], begun["epochs"], begun["lines"], begun["finished"]) == (HOSTILE, 3, [], False)
        runs.append_metrics(run, point(1))
        with (run / runs.METRICS).open("a") as cut_short:
            cut_short.write('{"step": 20, "ep')
        under_way = client.state()
        assert under_way["lines"] == [point(1)]
        assert not under_way["finished"]
        assert 0 <= under_way["silent"] < 600
        runs.keep_metrics(run, 10)
        for epoch in (2, 3):
            runs.append_metrics(run, point(epoch))
        assert client.state()["lines"] == [point(1), point(2), point(3)]
        assert client.state()["finished"]


def test_what_json_cannot_hold_is_left_out(run: Path) -> None:
    runs.append_metrics(run, point(1) | {"part": math.nan})
    with (run / runs.METRICS).open("a") as file:  # as earlier versions wrote it
        file.write(json.dumps(point(2) | {"part": math.nan, "other": -math.inf}) + "\n")
    with watching(run) as client:
        assert client.state()["lines"] == [point(1), point(2)]


class Links(HTMLParser):
    """What a page would load, and what it carries in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.loads += [str(held[name]) for name in ("src", "href") if name in held]
        self.ids |= {str(held["id"])} if "id" in held else set()
        assert "style" not in held, "the policy forbids it"
        assert not any(name.startswith("on") for name in held), "the policy forbids it"


def test_the_page_loads_nothing_from_outside_and_nothing_of_the_run_is_in_it(run: Path) -> None:
    with watching(run) as client:
        status, content, headers = client.ask("/")
        assert status == 200
        assert "script" not in HEADERS["Content-Security-Policy"], "scripts of its own alone"
        assert headers.items() >= HEADERS.items()
        page = content.decode()
        assert HOSTILE not in page
        links = Links()
        links.feed(page)
        assert links.loads == ["data:,", "page.css", "page.js"]
        for name in ("page.css", "page.js"):
            status, content, _ = client.ask(f"/{name}")
            assert status == 200
            text = content.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http" not in text
            assert "innerHTML" not in text, "what comes from a run is text"
        filled = set(re.findall(r'getElementById\("(\w+)"\)', text)) | {"status", "silence"}
        assert filled == links.ids, "the script fills what the page has"


@pytest.mark.parametrize("host", ("evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", "0.0.0.0", ""))
def test_other_names_of_this_machine_are_refused(host: str, run: Path) -> None:
    """A page elsewhere may point its name at 127.0.0.1; the browser then says that name."""
    with watching(run) as client:
        for path in ("/", "/state.json", "/page.js"):
            named = f"{host}:{client.port}" if host in ("evil.example", "0.0.0.0") else host
            status, content, _ = client.ask(path, host=named)
            assert status == 403
            assert HOSTILE.encode() not in content
        assert client.ask("/", host=f"localhost:{client.port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    (
        "/recipe.yaml",
        "/../secret",
        "/..%2fsecret",
        "/page.js/../../secret",
        "//etc/passwd",
        "/__init__.py",
        "/page.html",
        "/state.json?x",
        "/page.js?x",
        "http://127.0.0.1/state.json",
        "*",
        "/" + "x" * 5000,
    ),
)
def test_other_paths_do_not_exist(path: str, run: Path) -> None:
    with watching(run) as client:
        status, content, _ = client.ask(path)
        assert status == 404
        assert b"secret" not in content


def test_looking_is_all_that_can_be_done(run: Path) -> None:
    with watching(run) as client:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert client.ask("/", method)[0] == 501
        status, content, headers = client.ask("/state.json", "HEAD")
        assert (status, content) == (200, b"")
        assert int(headers["Content-Length"]) > 0


def test_a_run_that_goes_away_is_told_and_does_not_end_the_watch(run: Path) -> None:
    with watching(run) as client:
        recipe = (run / runs.RECIPE).read_bytes()
        (run / runs.RECIPE).unlink()
        status, content, _ = client.ask("/state.json")
        assert status == 503
        assert "holds no recipe.yaml" in json.loads(content)["error"]
        (run / runs.RECIPE).write_bytes(recipe)
        assert client.state()["epochs"] == 3


@pytest.mark.parametrize("recipe", ("- list", "name: x", "name: [", "optimise: {epochs: ten}\nname: x", "\x00"))
def test_what_is_no_run_is_refused(recipe: str, run: Path, tmp_path: Path) -> None:
    (run / runs.RECIPE).write_text(recipe)
    with pytest.raises(Refusal, match="cannot be read"):
        state(run)
    with pytest.raises(Refusal, match="nowhere does not exist"):
        server(tmp_path / "nowhere", 0)
    with pytest.raises(Refusal, match="secret is a file"):
        server(tmp_path / "secret", 0)
    (run / runs.RECIPE).write_text("{name: x, optimise: {epochs: 3}}")
    (run / runs.METRICS).write_text('["no log point"]\n')
    with pytest.raises(Refusal, match="cannot be read"):
        state(run)


def test_a_port_that_is_taken_is_told_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["watch", str(run), "--port", str(port)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert f"port {port} cannot be used (taken); name another with --port" in told.err
    assert main(["watch", str(run), "--port", "65536"]) == 2
    assert "--port 65536 given; allowed: 0" in capsys.readouterr().err


def test_ctrl_c_ends_it_cleanly_and_torch_is_never_loaded(run: Path) -> None:
    program = "import sys; from anchor_robust.cli import main; print(main(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "watch", str(run), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split("/ shows")[0].rpartition(":")[2])
        assert Client(port).state()["name"] == HOSTILE
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), err) == (0, "0 False", "")
