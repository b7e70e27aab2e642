"""What a reader can hold in the head: the most lines of a module, and methods and attributes of a class."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import django_mysqlpool

pytestmark = pytest.mark.unit

PACKAGE = Path(django_mysqlpool.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
CLASSES = [
    pytest.param(node, id=f"{module.stem}.{node.name}")
    for module in MODULES
    for node in ast.walk(ast.parse(module.read_text()))
    if isinstance(node, ast.ClassDef)
]
MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES = 350, 25, 15


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Those of instances: what methods set on ``self``, and the fields that the class' body declares."""
    fields = {
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    return fields | {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute)
        and isinstance(inner.ctx, ast.Store)
        and isinstance(inner.value, ast.Name)
        and inner.value.id == "self"
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_the_lines_of_a_module(module):
    assert len(module.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("node", CLASSES)
def test_the_methods_of_a_class(node):
    methods = {statement.name for statement in node.body if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert len(methods) <= MOST_METHODS


@pytest.mark.parametrize("node", CLASSES)
def test_the_attributes_of_a_class(node):
    attributes = attributes_of(node)
    assert len(attributes) <= MOST_ATTRIBUTES, sorted(attributes)


def test_there_are_classes():
    assert len(CLASSES) > 50
    assert attributes_of(ast.parse("class A:\n    b: int\n    def __init__(self):\n        self.c = 1").body[0]) == {
        "b",
        "c",
    }
