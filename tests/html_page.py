"""Pages of HTML, as a parser and as a browser see them."""

import html
import html.parser
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

WIDTHS = (390, 1280, 1920)  # of a telephone and of screens, in pixels


class Page(html.parser.HTMLParser):
    """Checks that every element is closed, and collects the page's fetched addresses, links, pictures and texts."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.fetched, self.links, self.ids, self.images = [], [], [], [], []
        self.text, self.codes, self.scripts = "", [], ""
        self.feed(text)
        self.close()
        assert not self.open and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetched += [value for name, value in attrs if name in ("src", "srcset", "data", "action", "xlink:href")]
        if tag == "link":
            self.fetched.append(found["href"])
        elif "href" in found:
            self.links.append(found["href"])
        self.ids += [found["id"]] if "id" in found else []
        if tag == "code":
            self.codes.append("")
        if tag == "img" or (tag == "svg" and "aria-hidden" not in found):
            self.images.append((found.get("alt", found.get("aria-label")), tuple(self.open[-2:])))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "code" in self.open:
            self.codes[-1] += data
        if "script" in self.open:
            self.scripts += data


def read_page(out: Path) -> Page:
    """The page in a folder, which fetches nothing and whose links all lead somewhere."""
    text = (out / "index.html").read_text()
    found = Page(text)
    assert found.fetched and all(address.startswith("data:") for address in found.fetched)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    for address in found.links:
        if address.startswith("#"):
            assert address[1:] in found.ids, address
        else:
            path = Path(urllib.parse.unquote(address))
            assert not path.is_absolute() and (out / path).exists(), address
    assert all(alt for alt, _ in found.images)
    return found


def browse(folder: Path, path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A headless Chromium shows a file; skips the test if there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("a page is shown by Chromium, and no chromium or google-chrome is installed")
    always = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    argv = [browser, *always, *flags, path.as_uri()]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def console(page: Path, folder: Path) -> str:
    """What a page writes to the console of Chromium. Its screenshots, light and dark, are not empty."""
    from matplotlib.image import imread

    def said(path: Path, *flags: str) -> str:
        shot = f"--screenshot={path.with_suffix('.png')}"
        done = browse(folder, path, "--enable-logging=stderr", shot, *flags)
        return "".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)

    (folder / "bad.html").write_text('<img src="absent.png"><script>absent()</script>')
    assert "absent" in said(folder / "bad.html")  # so an error would be seen
    alone = Path(shutil.copy(page, folder / "good.html"))
    lines, means = "", []
    for dark in ((), ("--blink-settings=preferredColorScheme=0",)):
        lines += said(alone, *dark)
        shown = imread(folder / "good.png")[..., :3]
        means.append(shown.mean())
        assert shown.std() > 0.05
    assert means[0] > 0.8 and means[1] < 0.5
    return lines


def looked_at(page: Path, folder: Path, look: str) -> list:
    """The result of JavaScript in the page, with the names `page` and `frame`, for each of `WIDTHS`.

    Nothing of the page is wider than the window, except inside a box that scrolls, and the page fetches nothing.
    """
    script = f"""
        const look = (page, frame) => {{ {look} }};
        addEventListener("load", () => {{
          const found = [...document.querySelectorAll("iframe")].map(frame => {{
            const page = frame.contentDocument;
            const beyond = [...page.querySelectorAll("body *")].filter(
              each => !each.closest(".wide, .zoom") && each.getBoundingClientRect().right > frame.clientWidth + 1);
            const fits = page.documentElement.scrollWidth <= frame.clientWidth;
            const all = frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name);
            const fetched = all.filter(name => !name.startsWith("data:"));
            return {{fits, beyond: beyond.length, fetched, seen: look(page, frame)}};
          }});
          document.title = JSON.stringify(found);
        }});
    """
    text = html.escape(page.read_text())
    frames = "".join(f'<iframe width="{w}" height="800" frameborder="0" srcdoc="{text}"></iframe>' for w in WIDTHS)
    path = folder / "frames.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title></title>{frames}<script>{script}</script>")
    dom = browse(folder, path, "--dump-dom").stdout
    title = re.search("<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    for one, width in zip(found, WIDTHS, strict=True):
        assert (one["fits"], one["beyond"], one["fetched"]) == (True, 0, []), width
    return [one["seen"] for one in found]
