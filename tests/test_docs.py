"""The API reference: every public name says what it is, and the pages that `make docs` builds hang together."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("toolkit", "controls", "experiments") for path in (ROOT / folder).rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TAGS = (
    "a blockquote body br button code dd div dl dt em footer h1 h2 h3 h4 h5 h6 head header hr html img input label li "
    "link main meta nav ol p path pre script section span strong style sup svg table tbody td th thead title tr ul wbr"
)
"""What pdoc writes: another tag was a word in angle brackets, which a docstring has to put between backticks."""


def name(path):
    return str(path.relative_to(ROOT))


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_overload(node):
    """Of an overloaded function only the last definition has a docstring."""
    return any(ast.unparse(one).endswith("overload") for one in node.decorator_list)


def has_fields(node):
    marks = [ast.unparse(one) for one in (*node.decorator_list, *node.bases)]
    return any("dataclass" in mark or mark.endswith("NamedTuple") for mark in marks)


def bare_fields(node):
    """Public fields of a class without a line of text below."""
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation) and not is_text(below):
            yield ast.unparse(field.target)


def undocumented(tree, path="module"):
    """Public names without a docstring: the module, classes, functions, methods, properties and fields."""
    found = [] if ast.get_docstring(tree) else [path]
    if isinstance(tree, FUNCTIONS):
        return found
    if isinstance(tree, ast.ClassDef) and has_fields(tree):
        found += [f"{path}.{field}" for field in bare_fields(tree) if not field.startswith("_")]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and not node.name.startswith("_") and not is_overload(node):
            found += undocumented(node, f"{path}.{node.name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_public_name_says_what_it_is(path):
    assert undocumented(ast.parse(path.read_text("utf-8"))) == []


PLANTED = '''
def f(): pass
def _private(): pass
@numba.njit(cache=True)
def compiled(x): return x
class C:
    """Has one."""
    field: int
    @property
    def p(self): return 1
    @overload
    def m(self, x: int): ...
    def m(self, x):
        """Has one."""
        def inner(): pass
class _Private:
    def m(self): pass
@dataclass(frozen=True)
class D:
    a: int
    """Has one."""
    b: int = 2
    _c: int = 3
    d: ClassVar[int] = 4
class N(NamedTuple):
    """Has one."""
    a: int
'''


def test_the_check_finds_what_is_missing_and_nothing_else():
    missing = ["", ".f", ".compiled", ".C.p", ".D", ".D.b", ".N.a"]
    assert undocumented(ast.parse(PLANTED)) == [f"module{one}" for one in missing]


class Page(HTMLParser):
    """What a page holds: anchors, links, tags, and what a browser would fetch for it."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.tags, self.fetched = set(), set(), set(), set()
        self.style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.style = tag == "style"
        self.anchors |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        places = {given.get(key) for key in ("src", "srcset", "data", "poster")} | {tag == "link" and given.get("href")}
        self.fetched |= {place for place in places if place and not place.startswith("data:")}
        self._styled(given.get("style") or "")

    def handle_data(self, data):
        if self.style:
            self._styled(data)

    def _styled(self, css):
        places = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", css)
        self.fetched |= {place for pair in places for place in pair if place and not place.startswith("data:")}


def read(folder):
    """Pages by their place in the folder, less the listings of source, which link to their own lines alone."""
    texts = {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.html"))}
    listing = re.compile(r'<div class="pdoc-code codehilite"><pre>.*?</pre></div>', flags=re.DOTALL)
    return {place: Page(listing.sub("", text)) for place, text in texts.items()}


def broken(pages):
    """Links to a page or an anchor that is not there, each after the page it is on."""
    found = []
    for place, page in pages.items():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            target = os.path.normpath(Path(place).parent / file) if file else place
            inside = not re.match(r"[a-z]+:", link)
            if inside and (target not in pages or (anchor and anchor not in pages[target].anchors)):
                found.append(f"{place} -> {link}")
    return found


def test_the_readings_of_a_page_find_what_they_look_for(tmp_path):
    (tmp_path / "a").mkdir()
    links = ["#here", "#gone", "b.html", "a/c.html#there", "a/c.html#gone", "https://example.org/x.html#y"]
    fetched = '<script src="https://x.org/s.js"></script><link href="https://x.org/a.css"><img src="data:image/png,0">'
    style = (
        "<style>@import 'https://x.org/b.css'; p {background: url(https://x.org/c.png)} q {mask: url(data:x)}</style>"
    )
    text = '<p id="here">' + "".join(f'<a href="{link}">' for link in links) + fetched + style + "<name>"
    (tmp_path / "index.html").write_text(text)
    (tmp_path / "a" / "c.html").write_text('<p id="there"><a href="../index.html#here"><a href="../c.html">')
    pages = read(tmp_path)
    gone = {"index.html -> #gone", "index.html -> b.html", "index.html -> a/c.html#gone", "a/c.html -> ../c.html"}
    assert set(broken(pages)) == gone
    assert pages["index.html"].fetched == {f"https://x.org/{file}" for file in ("s.js", "a.css", "b.css", "c.png")}
    assert pages["index.html"].tags - set(TAGS.split()) == {"name"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the command of `make docs` writes."""
    pytest.importorskip("pdoc", reason="needs pdoc")
    folder = tmp_path_factory.mktemp("site")
    recipe = re.search(r"^\t\$\(BIN\)/(pdoc .*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    words = [str(folder) if word == "site" else word for word in shlex.split(recipe[1])]
    assert str(folder) in words
    done = subprocess.run([sys.executable, "-m", *words], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return read(site)


@pytest.mark.slow
def test_every_public_module_has_a_page_and_the_index_leads_to_it(pages):
    files = [name(path).removesuffix(".py").removesuffix("/__init__") for path in MODULES if path.stem != "__main__"]
    wanted = {f"{file}.html" for file in files if "/_" not in file}
    assert wanted == set(pages) - {"index.html"}
    assert wanted <= pages["index.html"].links


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_is_fetched(pages):
    assert sum(len(page.links) for page in pages.values()) > 5_000
    assert broken(pages) == []
    assert set().union(*(page.fetched for page in pages.values())) == set()


@pytest.mark.slow
def test_what_the_search_finds_is_on_the_pages(site, pages):
    found = json.JSONDecoder().raw_decode((site / "search.js").read_text().partition("const docs = ")[2])[0]
    listed = found if isinstance(found, list) else found["documentStore"]["docs"].values()  # where Node indexed them
    entries = {(one["modulename"].replace(".", "/") + ".html", one.get("qualname", "")) for one in listed}
    assert ("toolkit/sae.html", "fit_sae") in entries
    assert [entry for entry in entries if entry[1] and entry[1] not in pages[entry[0]].anchors] == []


@pytest.mark.slow
def test_the_pages_show_fields_inherited_methods_and_shapes_and_no_machine(site, pages):
    assert {"Audit.verdicts", "Audit.counts"} <= pages["controls/audit.html"].anchors
    assert "In the order of the finders." in (site / "controls" / "audit.html").read_text().partition("<main")[2]
    assert {"OMP.fit", "OMP.transform", "Lasso.path"} <= pages["toolkit/pursuit.html"].anchors
    assert not any("set_fit_request" in anchor for page in pages.values() for anchor in page.anchors)
    metadata = re.search(r'id="SAE.history".*?</div>', (site / "toolkit" / "sae.html").read_text(), flags=re.DOTALL)
    assert ": Float[Tensor, " in metadata[0]
    assert set().union(*(page.tags for page in pages.values())) <= set(TAGS.split())
    assert [place for place in pages if str(ROOT) in (site / place).read_text()] == []


@pytest.mark.slow
def test_in_a_browser_the_search_answers_and_nothing_comes_from_outside(site, browser):
    page = browser.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{site}/index.html")
    page.fill("input[type=search]", "fit_sae")
    page.wait_for_selector(".search-result a[href*='toolkit/sae.html#fit_sae']")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    page.close()
