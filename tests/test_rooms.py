"""The house: a room imports from rooms below it only, and there is no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import persyn_datasets

PACKAGE = Path(persyn_datasets.__file__).parent

# From the ground up. The rooms of a floor do not know each other.
FLOORS = [
    {"config"},
    {"store"},
    {"data"},
    {"engines", "router"},
    {"signals", "strategies"},
    {"stages", "tasks"},
    {"runners", "report", "designer"},
    {"hub", "inputs", "plan", "routing"},
    {"builder", "reuse"},
    {"compare", "options", "quickstart"},
    {"cli"},
]
# Public names come from everywhere, when they are used; and `python -m persyn_datasets`.
DOORS = ("__init__", "__main__")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports():
    """(module, the module of ours that it imports), as dotted paths within the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module in DOORS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = []
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
                if node.module in ("persyn_datasets", *_packages()):
                    found = [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Import):
                found = [name.name for name in node.names]
            for name in found:
                if name.startswith("persyn_datasets."):
                    yield module, name.removeprefix("persyn_datasets.")


def _packages():
    return [f"persyn_datasets.{folder.name}" for folder in PACKAGE.iterdir() if folder.is_dir()]


def room(module):
    return module.partition(".")[0]


def test_every_module_has_a_room():
    rooms = {room(module) for module, _ in imports()}
    assert rooms <= set(FLOOR)


def test_every_import_runs_down():
    wrong = {
        (module, target)
        for module, target in imports()
        if room(target) not in (room(module), *DOORS)
        and FLOOR.get(room(target), -1) >= FLOOR[room(module)]
    }
    assert not wrong


def test_no_two_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    modules = {module for module, _ in imports()}
    for module, target in imports():
        if target in modules:
            graph.setdefault(module, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
