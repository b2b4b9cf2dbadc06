"""Every public name says what it is, what it takes and what it gives."""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

import lorsum

PACKAGE = str(Path(lorsum.__file__).parent)
MODULES = ["lorsum", "datasets", "nn", "optim", "theory", "torch", "jax"]


@pytest.fixture(params=MODULES)
def public(request):
    """The public names of a module and what they stand for."""
    if request.param in ("torch", "jax"):
        pytest.importorskip(request.param)
    module = importlib.import_module(request.param if request.param == "lorsum" else f"lorsum.{request.param}")
    return {name: getattr(module, name) for name in module.__all__}


def functions_of(cls):
    """The public and the special methods and properties that a class has from this package."""
    for name, member in {name: member for base in reversed(cls.__mro__) for name, member in vars(base).items()}.items():
        if name.startswith("_") and not name.startswith("__"):
            continue
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if inspect.isfunction(function):
            yield name, function


def slots_of(cls):
    """The public attributes that a class declares in its slots."""
    for base in cls.__mro__:
        if base.__module__.startswith("lorsum"):
            slots = vars(base).get("__slots__", ())
            yield from (name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("_"))


def lacking(function, name):
    """What of a function that is written in this package has no annotation."""
    function = inspect.unwrap(function)
    if not (inspect.isfunction(function) and function.__code__.co_filename.startswith(PACKAGE)):
        return []  # what named tuples and data classes generate takes its types from the fields
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        del parameters[0]
    missing = [f"{name}({parameter.name})" for parameter in parameters if parameter.annotation is parameter.empty]
    if signature.return_annotation is signature.empty and not name.endswith(".__init__"):
        missing.append(f"{name} -> ?")
    return missing


def lacking_in_class(cls, name):
    """What of a class has no annotation."""
    missing = [text for member, function in functions_of(cls) for text in lacking(function, f"{name}.{member}")]
    known = {attribute for base in cls.__mro__ for attribute in inspect.get_annotations(base)}
    return missing + [f"{name}.{attribute}: ?" for attribute in slots_of(cls) if attribute not in known]


def test_every_public_name_is_annotated(public):
    missing = []
    for name, thing in public.items():
        missing += lacking_in_class(thing, name) if inspect.isclass(thing) else lacking(thing, name)
    assert not missing, "\n".join(missing)


def test_random_numbers_start_from_the_seed_0(public):
    functions = []
    for name, thing in public.items():
        members = functions_of(thing) if inspect.isclass(thing) else [("", thing)] if callable(thing) else []
        functions += [(f"{name}.{member}", inspect.unwrap(function)) for member, function in members]
    found = ((name, inspect.signature(function).parameters.get("rng")) for name, function in functions)
    defaults = {name: rng.default for name, rng in found if rng is not None and rng.default is not rng.empty}
    assert {name: default for name, default in defaults.items() if default != 0} == {}


def test_every_public_function_and_class_has_a_docstring(public):
    assert [name for name, thing in public.items() if callable(thing) and not inspect.getdoc(thing)] == []


def test_mypy_is_strict_on_every_public_module():
    settings = tomllib.loads((Path(PACKAGE).parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    (strict,) = (part["module"] for part in settings["overrides"] if part.get("disallow_untyped_defs"))
    files = (path.relative_to(Path(PACKAGE).parent).with_suffix("") for path in Path(PACKAGE).rglob("*.py"))
    modules = {".".join(path.parts).removesuffix(".__init__") for path in files}
    public = {module for module in modules if not any(part.startswith("_") for part in module.split("."))}
    assert public == set(strict)


def test_what_lacks_a_type_is_found():
    class Half:
        __slots__ = ("x",)

        def method(self, a: int, b) -> None: ...

        @property
        def value(self): ...

    for part in (Half.method, Half.value.fget):
        part.__code__ = part.__code__.replace(co_filename=f"{PACKAGE}/half.py")
    Half.__module__ = "lorsum.half"
    assert lacking_in_class(Half, "Half") == ["Half.method(b)", "Half.value -> ?", "Half.x: ?"]
