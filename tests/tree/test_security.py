"""The shipped source contains no code made from data, no unsafe readers, and no network in a node."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "artifacts",
    "blending",
    "nodes",
    "rewards",
    "training",
    "evaluation",
    "miniature",
    "pipelines",
    "preference_learning",
)
NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib",
    "urllib3",
    "requests",
    "httpx",
    "aiohttp",
    "websockets",
    "ftplib",
    "smtplib",
}
# A reward over HTTP, whose address the user writes. No node takes one.
CLIENTS = {"rewards/remote.py"}
# Files that the host's own server sends: aiohttp's answers, not its client.
ANSWERS = {("aiohttp", "web")}
PROCESSES = {"subprocess", "multiprocessing", "pty", "ctypes"}
UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
# pickle is imported only for the exception that torch.load raises.
HARMLESS = {"pickle": {"UnpicklingError"}}
# Modules named in a string: one's own reward or base from the command line, the host's `nodes`, the subcommands.
LATE_IMPORTS = {
    "rewards/load.py",
    "training/algorithms/__init__.py",
    "training/models/bases.py",
    "nodes/samplers.py",
    "command.py",
    "pipelines/trajectories.py",  # this package's own classes that a pipeline folder names
}
# The pool of one thread that limits the time of a reward.
LATE_PROCESSES = {"rewards/guarded.py"}
# Configurations and vocabularies: JSON and text, no weights.
NO_WEIGHTS = ("Processor", "Tokenizer")

# JavaScript that makes elements or code from text.
FROM_TEXT = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|srcdoc|DOMParser|setHTMLUnsafe|eval|Function)\b"
    r"|\bdocument\.write|\b(setTimeout|setInterval)\(\s*['\"`]"
)
# The host's menu reads text as HTML on older front ends. One file opens it, with plain text.
MENU, OPENS_MENUS = "ContextMenu", "web/pad/context_menu.js"


def called(node):
    """Return the dotted name of the called function."""
    return ast.unparse(node.func)


def constant(node, name):
    """Return the value of a keyword if it is a constant."""
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def offences_of_call(node, file):
    name = called(node)
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen") or name.startswith(
        ("os.spawn", "os.exec")
    ):
        yield f"calls {name}"
    if name == "torch.load" and constant(node, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if (
        last == "from_pretrained"
        and not name.split(".")[-2].endswith(NO_WEIGHTS)
        and constant(node, "use_safetensors") is not True
    ):
        yield f"{name} without use_safetensors=True"
    if name in ("np.load", "numpy.load") and constant(node, "allow_pickle"):
        yield f"{name} with allow_pickle"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        yield f"calls {name}"
    if constant(node, "shell"):
        yield f"{name} with a shell"
    if last == "import_module" and file not in LATE_IMPORTS:
        yield f"calls {name}"
    if any(
        isinstance(word, ast.Constant) and word.value in ("pip", "uv", "conda")
        for a in node.args
        for word in ast.walk(a)
    ):
        yield f"{name} with an installer's name"


def offences(source, file):
    """Return descriptions of forbidden code in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from offences_of_call(node, file)
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name.split(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [((node.module or "").split(".")[0], alias.name) for alias in node.names]
        for module, name in names:
            if module in UNPICKLERS and name not in HARMLESS.get(module, ()):
                yield f"imports {module}.{name}"
            if module in PROCESSES and file not in LATE_PROCESSES:
                yield f"imports {module}"
            if module in NETWORK and file not in CLIENTS and (module, name) not in ANSWERS:
                yield f"imports {module}"
            if module in ("pip", "ensurepip", "setuptools"):
                yield f"imports {module}"


def shipped():
    return [
        ROOT / "__init__.py",
        ROOT / "command.py",
        *(p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))),
    ]


def test_the_shipped_source_does_none_of_it():
    found = {
        f"{path.relative_to(ROOT)}: {offence}"
        for path in shipped()
        for offence in offences(path.read_text(), str(path.relative_to(ROOT)))
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=choice)",
        "CLIPModel.from_pretrained(folder)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run('ls', shell=True)",
        "run([sys.executable, '-m', 'pip', 'install', 'x'])",
        "importlib.import_module(name)",
        "import pickle",
        "from pickle import loads",
        "import socket",
        "from urllib.request import urlopen",
        "import subprocess",
        "from aiohttp import ClientSession",
    ],
)
def test_each_of_it_would_be_found(line):
    assert list(offences(line, "nodes/any.py"))


def test_no_shipped_file_is_a_pickle_or_a_program():
    """The registry's archive holds the files that git holds."""
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True
    ).stdout.split()
    endings = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".npy", ".npz", ".so", ".pyd", ".dll", ".exe", ".whl"}
    assert [name for name in names if Path(name).suffix in endings] == []
    assert len(names) > 100


def offences_of_script(source, file):
    """Return forbidden words in the code of a script. Comments do not count."""
    code = re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", source, flags=re.DOTALL)
    yield from (found.group() for found in FROM_TEXT.finditer(code))
    if MENU in code and file != OPENS_MENUS:
        yield MENU


def test_no_script_makes_elements_or_code_from_text():
    scripts = sorted((ROOT / "web").rglob("*.js"))
    found = {
        (str(path.relative_to(ROOT)), word)
        for path in scripts
        for word in offences_of_script(path.read_text(), str(path.relative_to(ROOT)))
    }
    assert found == set()
    assert len(scripts) > 30


@pytest.mark.parametrize(
    "line",
    [
        "element.innerHTML = name",
        "element.insertAdjacentHTML('beforeend', name)",
        "document.write(name)",
        "new Function(text)()",
        "setTimeout('go()', 5)",
        "new LiteGraph.ContextMenu(entries, { event })",
    ],
)
def test_each_of_it_would_be_found_in_a_script(line):
    assert list(offences_of_script(line, "web/any.js"))
    assert list(offences_of_script(f"// {line}\n/* {line} */", "web/any.js")) == []
