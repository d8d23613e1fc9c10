"""A headless Chromium, driven over chromedriver's HTTP interface (W3C WebDriver)."""

import base64
import json
import re
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,900"),
]
KEYS = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Escape": "\ue00c"}
KEYS |= {"ArrowUp": "\ue013", "ArrowDown": "\ue015"}


LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    def __init__(self, port, profile):
        self.root = f"http://127.0.0.1:{port}/session"
        options = {"binary": str(CHROMIUM), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        session = self.request("", {"capabilities": {"alwaysMatch": wanted}})
        self.root += "/" + session["sessionId"]

    def request(self, path, body=None, method="POST"):
        content = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + path, content, method=method)
        request.add_header("Content-Type", "application/json")
        with LOCAL.open(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def open(self, path):
        self.request("/url", {"url": Path(path).as_uri()})

    def run(self, script, *args):
        """The value that a script returns; `arguments` are `args`."""
        return self.request("/execute/sync", {"script": script, "args": list(args)})

    def press(self, *keys):
        """Real key presses, as of a keyboard."""
        keys = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self.request("/actions", body)

    def devtools(self, command, **parameters):
        return self.request("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind):
        return self.request("/se/log", {"type": kind})

    def requested(self):
        """The addresses that pages from files asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        sent = [m["params"] for m in sent if m["params"]["documentURL"].startswith("file:")]
        return [params["request"]["url"] for params in sent]

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.request("/screenshot", method="GET")))


@contextmanager
def browser(profile):
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    started = None
    try:
        for line in driver.stdout:
            if port := re.search(r"successfully on port (\d+)", line):
                break
        started = Browser(port[1], profile)
        yield started
    finally:
        if started:
            started.request("", method="DELETE")
        driver.terminate()
        driver.wait()
