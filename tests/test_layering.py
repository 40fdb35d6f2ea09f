"""The house rules that can be read off the source: imports go down, names are documented, functions are short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("toolkit", "controls", "experiments") for path in (ROOT / folder).rglob("*.py"))
TOOLKIT = [path for path in MODULES if path.is_relative_to(ROOT / "toolkit")]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    """Top-level packages a module imports, anywhere in it, by statement or by name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            found |= {
                a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
    return found


def upward(folder, tree):
    """Imports of a floor above the one a file stands on."""
    floors = ["toolkit", "controls", "experiments"]
    return imported(tree) & {*floors[floors.index(folder) + 1 :], "tests", "benchmarks"}


def undocumented(tree):
    """Public functions, classes and methods without a docstring."""
    found = []
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            members = [
                m for m in getattr(node, "body", []) if isinstance(node, ast.ClassDef) and isinstance(m, FUNCTIONS)
            ]
            public = [node, *(m for m in members if not m.name.startswith("_"))]
            found += [f"{node.name}.{item.name}" for item in public if not ast.get_docstring(item)]
    return found


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def undocumented_fields(tree):
    """Dataclass fields without a docstring line under them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and not is_text(below):
                    found.append(f"{node.name}.{ast.unparse(field.target)}")
    return found


def long_functions(tree, limit=60):
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    return [node.name for node in functions if node.end_lineno - node.lineno + 1 > limit]


def parse(path):
    return ast.parse(path.read_text("utf-8"))


def test_there_are_files_to_read():
    assert {"toolkit/toy.py", "toolkit/metrics.py", "controls/__init__.py"} <= {name(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_only_go_down(path):
    assert upward(path.relative_to(ROOT).parts[0], parse(path)) == set()


@pytest.mark.parametrize(
    ("package", "importer"),
    [("sae_lens", "toolkit/sae.py"), ("transformer_lens", "toolkit/language.py"), ("umap", "toolkit/maps.py")],
)
def test_a_heavy_dependency_has_one_importer(package, importer):
    assert [name(path) for path in MODULES if package in imported(parse(path))] == [importer]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_an_init_file_holds_a_docstring_only(path):
    body = parse(path).body
    assert len(body) == 1
    assert is_text(body[0])


@pytest.mark.parametrize("path", TOOLKIT, ids=name)
def test_every_public_name_has_a_docstring_and_no_function_is_longer_than_sixty_lines(path):
    tree = parse(path)
    assert ast.get_docstring(tree)
    assert undocumented(tree) == []
    assert long_functions(tree) == []


def test_every_setting_has_a_docstring_line_under_it():
    assert undocumented_fields(parse(ROOT / "toolkit" / "configs.py")) == []


def test_no_file_is_a_drawer_for_what_fits_nowhere():
    assert [name(path) for path in MODULES if path.stem in ("utils", "helpers", "common")] == []


def test_the_readings_find_what_they_look_for():
    assert upward("toolkit", ast.parse("def f():\n    from controls.verdict import judge")) == {"controls"}
    assert upward("controls", ast.parse("import experiments.toy as e, toolkit")) == {"experiments"}
    assert upward("toolkit", ast.parse("__import__('experiments.toy')")) == {"experiments"}
    assert upward("experiments", ast.parse("import toolkit, controls")) == set()
    code = "def f(): pass\ndef _g(): pass\nclass C:\n    '''Doc.'''\n    def m(self): pass\n    def _n(self): pass"
    assert undocumented(ast.parse(code)) == ["f.f", "C.m"]
    fields = "    a: int\n    'Doc.'\n    b: int = 2\n    c: int = 3\n    'Doc.'\n    d: int"
    code = "@dataclass(frozen=True)\nclass C:\n" + fields
    assert undocumented_fields(ast.parse(code)) == ["C.b", "C.d"]
    assert long_functions(ast.parse("def f():\n" + "    pass\n" * 60)) == ["f"]
    assert long_functions(ast.parse("def f():\n" + "    pass\n" * 59)) == []
